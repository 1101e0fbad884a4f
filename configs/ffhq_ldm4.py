"""LDM-4 on FFHQ, 256 x 256; the checkpoint is latent diffusion's `ffhq256`. The network is that of LSUN-Bedrooms.

  python -m binarydm_jax.main --config=configs/ffhq_ldm4.py --workdir=runs/ffhq \
    --config.teacher.checkpoint=model.ckpt --config.data.source=folder:ffhq256

Variants: --config.quant.act_bits=32 | 8 | 4; --config.method=baseline | binarydm_v1 | lsq (v2 to v4 of the paper, which
have these two, with --config.quant.edges=float). The paper does not state DDIM's eta, 0 here; latent diffusion gives
its own FID of this network by eta 1 (--config.sample.eta=1.0).
"""

from configs import ldm4


def get_config():
  config = ldm4.get_config()
  config.data.source = "folder:data/ffhq256"
  return config
