"""What the settings on latent diffusion share: LDM-4 on 256 x 256 images, 64 x 64 x 3 latents of VQ-f4, the recipe.

Not an experiment by itself: `lsun_bedrooms_ldm4`, `ffhq_ldm4`, `imagenet_ldm4` and `lsun_churches_ldm8` begin with it.
"""

from configs import base


def get_config():
  config = base.get_config()
  config.method = "binarydm_v5"
  config.quant.edges = "8bit"
  config.data.update(dict(image_size=256, channels=3, flip=True))
  config.model.update(
      dict(
          model_channels=224,
          channel_mult=(1, 2, 3, 4),
          attention_resolutions=(8, 4, 2),
          num_head_channels=32,
      )
  )
  config.first_stage.kind = "vq"  # the fields' defaults are VQ-f4's
  config.diffusion.update(dict(schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195))
  config.teacher.steps = 0  # published: give teacher.checkpoint
  # 200,000 iterations at a tenth to a hundredth of the full-precision learning rate.
  config.student.update(dict(steps=200_000, batch_size=4, learning_rate=2e-5, warmup_steps=0))
  config.checkpoint.every = 5000
  config.sample.update(dict(steps=100, clip=False, batch_size=16))
  config.evaluation.update(dict(num_samples=50_000, batch_size=16))
  return config
