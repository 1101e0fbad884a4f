"""CIFAR-10, 32 x 32, by the network of DDPM and DDIM; the checkpoint is a PyTorch port's `ema_cifar10`, or diffusers'.

  python -m binarydm_jax.main --config=configs/cifar10_ddim.py --workdir=runs/cifar10 \
    --config.teacher.checkpoint=model-790000.ckpt --config.evaluation.feature_network=inception \
    --config.evaluation.inception_weights=pt_inception-2015-12-05-6726825d.pth

Variants, each one override, and the published FID (v5; 50,000 samples by DDIM-100; full precision 5.54). None of it was
run here.

  (none)                                                     BinaryDM W1A4           87.77
  --config.quant.act_bits=8                                  BinaryDM W1A8           11.21
  --config.quant.act_bits=32                                 BinaryDM W1A32          11.92
  --config.method=baseline                                   one basis W1A4          100.17
  --config.method=baseline --config.quant.act_bits=8         one basis W1A8          20.25
  --config.method=baseline --config.quant.act_bits=32        one basis W1A32         22.59

--config.teacher.steps=800000 trains a teacher instead, for as long as DDPM's but with a cosine learning rate.
"""

from configs import base


def get_config():
  config = base.get_config()
  config.method = "binarydm_v5"
  config.quant.edges = "8bit"
  config.data.update(dict(source="tfds:cifar10", test_split="test", image_size=32, channels=3, flip=True))
  config.model.update(
      dict(
          model_channels=128,
          channel_mult=(1, 2, 2, 2),
          attention_resolutions=(2,),
          num_heads=1,
          dropout=0.1,
          layout="ddpm",
      )
  )
  config.teacher.update(dict(steps=0, batch_size=128, warmup_steps=5000, weight_decay=0.0))
  config.student.update(dict(steps=200_000, batch_size=64, learning_rate=2e-5, warmup_steps=0))
  config.checkpoint.every = 5000
  # The default (`uniform`) of the DDIM authors' code, whose other spacing is `quadratic`; they clip the image at the
  # end, not x0 at every step.
  config.sample.update(dict(steps=100, spacing="leading", clip=False, batch_size=250))
  config.evaluation.num_samples = 50_000
  return config
