"""LDM-8 on LSUN-Churches, 256 x 256: 32 x 32 x 4 latents of KL-f8; the checkpoint is `lsun_churches256`.

  python -m binarydm_jax.main --config=configs/lsun_churches_ldm8.py --workdir=runs/churches \
    --config.teacher.checkpoint=model.ckpt --config.data.source=folder:lsun/churches

Variants: --config.quant.act_bits=32 | 8 | 4; --config.method=baseline | binarydm_v1 | lsq (v2 to v4 of the paper, which
have these two, with --config.quant.edges=float).
"""

from configs import ldm4


def get_config():
  config = ldm4.get_config()
  config.data.update(dict(source="folder:data/lsun_churches"))
  config.model.update(
      dict(
          model_channels=192,
          channel_mult=(1, 2, 2, 4, 4),
          attention_resolutions=(1, 2, 4, 8),
          num_heads=8,
          num_head_channels=0,
          scale_shift=True,
          resblock_updown=True,
      )
  )
  config.first_stage.update(dict(kind="kl", channel_mult=(1, 2, 4, 4), latent_channels=4))
  config.diffusion.update(dict(beta_end=0.0155, loss="l1"))
  return config
