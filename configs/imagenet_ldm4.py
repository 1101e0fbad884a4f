"""LDM-4 on ImageNet, 256 x 256, by classes: SpatialTransformers attend to the class embedding; `cin256-v2`.

  python -m binarydm_jax.main --config=configs/imagenet_ldm4.py --workdir=runs/imagenet \
    --config.teacher.checkpoint=model.ckpt --config.data.source=folder:imagenet/train

Sampling in 20 steps with classifier-free guidance; the paper does not state the scale, 3 here.
Variants: --config.quant.act_bits=32 | 8 | 4; --config.method=baseline | binarydm_v1 | lsq (v2 to v4 of the paper, which
have these two, with --config.quant.edges=float).
"""

from configs import ldm4


def get_config():
  config = ldm4.get_config()
  config.data.update(dict(source="tfds:imagenet2012", test_split="validation"))
  config.model.update(
      dict(
          model_channels=192,
          channel_mult=(1, 2, 3, 5),
          num_heads=1,
          num_head_channels=0,
          class_conditional=True,
          num_classes=1000,
          null_class=True,
          context_dim=512,
      )
  )
  config.student.label_dropout = 0.1
  config.sample.update(dict(steps=20, guidance=3.0))
  return config
