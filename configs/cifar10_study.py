r"""CIFAR-10 at 16 x 16 on a two-core CPU: real photographs, W1A4, a network small enough to compare many methods.

  python -m binarydm_jax.study.prepare_cifar cifar10_train_jpeg.npz runs/cifar16.npz --size=16
  python -m binarydm_jax.evaluation.train_classifier --config=configs/cifar10_study.py \
    --output=runs/cifar16.safetensors --batch_size=64
  python -m binarydm_jax.study --config=configs/cifar10_study.py --folder=runs/cifar10_study

Other sources of the same images: --config.data.source=tfds:cifar10 --config.data.test_split=test, or folder:PATH; both
are resized on reading. The features are those of the classifier, so no distance compares with published FID.
"""

from configs import base


def get_config():
  config = base.get_config()
  config.data.update(dict(source="npz:runs/cifar16.npz", image_size=16, channels=3, flip=True))
  config.model.update(
      dict(
          model_channels=32,
          channel_mult=(1, 2, 2),  # 16x16, 8x8, 4x4: two bases in the first two levels
          num_res_blocks=1,
          attention_resolutions=(4,),
          norm_groups=8,
      )
  )
  config.diffusion.update(dict(schedule="cosine"))
  config.teacher.update(dict(steps=5000, batch_size=32, learning_rate=1e-3, ema_decay=0.999))
  # The best of 5e-4, 2e-3 and 4e-3 for the baseline, in held-out loss.
  config.student.update(dict(steps=500, batch_size=32, learning_rate=2e-3, warmup_steps=50, ema_decay=0.995))
  # As configs/digits.py.
  config.distill.weight = 1e-2
  config.quant.update(dict(fade=0.25, transition=0.25))
  config.log.every = 100
  config.checkpoint.every = 500
  config.sample.update(dict(steps=20, batch_size=250))
  config.evaluation.update(
      dict(
          num_samples=1500,
          feature_network="classifier",
          classifier="runs/cifar16.safetensors",
          timesteps_per_image=1,
      )
  )
  return config
