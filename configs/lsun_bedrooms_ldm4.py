"""LDM-4 on LSUN-Bedrooms, 256 x 256: the paper's main setting. The checkpoint is latent diffusion's `lsun_beds256`.

  python -m binarydm_jax.main --config=configs/lsun_bedrooms_ldm4.py --workdir=runs/bedrooms \
    --config.teacher.checkpoint=model.ckpt --config.data.source=folder:lsun/bedrooms

Without --config.evaluation.feature_network=inception and --config.evaluation.inception_weights=FILE the 50,000 samples
are drawn, and no FID is measured.

Variants, each one override, and the FID that was published for 50,000 samples by DDIM-100 (full precision 3.09). None
of it was run here: it needs LSUN, the checkpoint and accelerators. v2 to v5 are versions of arXiv 2404.05662; their
tables are of other settings (one basis W1A4 has 39.69 in v2 to v4) and do not compare with each other.

  (none)                                                        BinaryDM (v5) W1A4      7.74
  --config.quant.act_bits=32                                    BinaryDM (v5) W1A32     6.99
  --config.distill.weight=0                                     EBB alone (v5) W1A4     8.53
  --config.method=baseline                                      one basis (v5) W1A4     10.87
  --config.method=baseline --config.quant.act_bits=32           one basis (v5) W1A32    8.43
  --config.method=binarydm_v1 --config.quant.edges=float        BinaryDM (v2-v4) W1.1A4 7.11
  --config.method=lsq --config.quant.edges=float                LSQ (v2-v4) W2A4        12.95
  --config.quant.act_bits=8                                     W1A8

The paper does not state DDIM's eta, 0 here; latent diffusion gives its own FID of this network by eta 1
(--config.sample.eta=1.0).

On accelerators the command is the same; the batch of 4 is the paper's and must be a multiple of the devices.
Encoding once, where the disk has room (48 KiB of latents an image, a little less compressed; twice with mirror images):
`--mode=encode --config.first_stage.cache=DIR`, then the commands above with the same flag.
"""

from configs import ldm4


def get_config():
  config = ldm4.get_config()
  config.data.update(dict(source="tfds:lsun/bedroom"))
  return config
