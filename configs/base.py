"""Every field with its default. An experiment's file changes what differs; the command line changes the rest:

  python -m binarydm_jax.main --config=configs/digits.py --workdir=runs/digits --config.student.steps=2000

Fields of `seed`, `method`, `data`, `model`, `first_stage`, `diffusion`, `quant`, `distill`, `teacher` and `student`
shape training and are locked by the first run in a workdir, but for where weights and latents lie and how data are read
(docs/configs.md); the others may change from run to run.
"""

from ml_collections import ConfigDict


def training(**changes):
  """How one network is trained; `teacher` and `student` are two of these."""
  fields = ConfigDict(
      dict(
          steps=10_000,
          batch_size=64,  # global: over all devices and hosts
          learning_rate=2e-4,
          warmup_steps=100,  # linear from 0; a cosine to 0 follows
          weight_decay=1e-2,  # AdamW, on kernels only
          clip_norm=1.0,  # global norm of the gradients; 0 turns it off
          ema_decay=0.9999,  # warmed up as min(decay, (1 + n) / (10 + n))
          label_dropout=0.0,  # part of the labels that become the null class (classifier-free guidance)
      )
  )
  fields.update(changes)
  return fields


def get_config():
  config = ConfigDict()
  config.seed = 0
  # binarydm_v1 (LMB + LRM + progressive), binarydm_v5 (EBB + LRM), or one part: baseline, lmb, ebb, lsq; or what the
  # paper compares with, see binarydm_jax/quant/rivals: reactnet, insta_bnn, bi_diffsr, q_dm, tdq.
  config.method = "binarydm_v1"

  config.data = ConfigDict(
      dict(
          source="digits",  # digits | tfds:NAME | folder:PATH | npz:PATH
          image_size=8,
          channels=1,
          train_split="train",  # tfds only
          test_split="",  # tfds only; empty: a held-out part of the training split
          holdout=0.1,  # part held out of folders, npz files and tfds sets without a test split
          data_dir="",  # tfds only; empty: TFDS's own default
          flip=False,  # random horizontal flips
          # What cannot be read stops the run; True: the next example takes its place, with a warning, and is counted.
          skip_unreadable=False,
          threads=2,  # that read and decode, in each of the workers if there are any
          workers=0,  # processes that read and decode; each takes seconds to start and memory
          prefetch=4,  # batches kept ready
      )
  )
  config.model = ConfigDict(
      dict(
          model_channels=64,
          channel_mult=(1, 2, 2),
          num_res_blocks=2,  # of each level of the encoder, which may have none; the decoder has one more
          attention_resolutions=(4, 2),  # down-sampling factors
          num_heads=4,
          num_head_channels=0,  # channels a head; 0 takes num_heads
          scale_shift=False,  # the embedding scales and shifts, instead of being added
          resblock_updown=False,  # residual blocks change the resolution, instead of convolutions
          dropout=0.0,
          class_conditional=False,  # label embedding; the data must have labels
          num_classes=0,  # of a class-conditional network; 0 takes the data's
          null_class=False,  # one label more, for "no class"
          context_dim=0,  # above 0: SpatialTransformers attend to the class embedding, of this width
          transformer_depth=1,  # blocks of a SpatialTransformer
          norm_groups=32,
          layout="ldm",  # ldm (ADM, latent diffusion) | ddpm (the CIFAR-10 network of DDPM and DDIM)
      )
  )
  config.first_stage = ConfigDict(
      dict(
          kind="none",  # none (diffusion on pixels) | vq | kl: latent diffusion
          checkpoint="",  # its weights; empty: they are in the file teacher.checkpoint
          # These are VQ-f4's. VQ-f8: mult (1, 2, 2, 4), attention (8,), 4 latent channels, 16384 entries; KL-f8: mult
          # (1, 2, 4, 4), 4 latent channels.
          channels=128,
          channel_mult=(1, 2, 4),
          num_res_blocks=2,
          attention_resolutions=(),  # down-sampling factors
          latent_channels=3,
          codebook_size=8192,  # vq
          norm_groups=32,
          # Of latents; 0 takes the checkpoint's, else 1 for vq, 1 / standard deviation of the first batch for kl.
          scale_factor=0.0,
          cache="",  # folder of latents that --mode=encode writes and training reads; empty: encoded at every step
          batch_size=8,  # images that are encoded or decoded at once, outside training
      )
  )
  config.diffusion = ConfigDict(
      dict(
          schedule="linear",  # linear | scaled_linear | cosine
          num_timesteps=1000,
          beta_start=1e-4,
          beta_end=2e-2,
          target="eps",  # eps | x0 | v
          loss="l2",  # l2 | l1
      )
  )
  config.quant = ConfigDict(
      dict(
          weights="method",  # as the method says, or full_precision | baseline | lmb | ebb | lsq
          weight_bits=2,  # for lsq: 2 to 8
          act_bits=4,  # 32 (off) | 8 | 4 | 3 | 2
          # How a layer's input is quantized, as the method says, or lsq (signed levels) | asymmetric (as many levels
          # below zero as fit the input) | shifted (ReActNet) | instance (INSTA-BNN) | redistributed (BI-DiffSR) |
          # normalised (Q-DM) | dynamic (TDQ).
          activation="method",
          # What follows each layer, as the method says, or none | rprelu (ReActNet) | timed_rprelu (BI-DiffSR).
          response="method",
          edges="float",  # first and last convolution, time embedding: float | 8bit
          # Rules in front of the preset's, such as ("middle/*=lsq4/8",); their activation is lsq, their response none.
          overrides=(),
          calibration_batches=1,  # training batches that the activation steps start from
          progressive="method",  # as the method says, or none | blocks | levels
          interval=1,  # iterations a ring of progressive initialisation
          tau=9e-2,  # weight of the loss that shrinks EBB's second basis
          transition=0.5,  # part of the steps after which EBB's second basis is gone
          fade=0.0,  # part of the steps, the last before the transition, in which it falls to nothing; 0: all at once
          learning_rate_factor=1.0,  # of scales, steps and all else that quantization adds, over the weights'
      )
  )
  config.distill = ConfigDict(
      dict(
          projection="method",  # as the method says, or randomized_pca | pca | random | none (plain MSE) | off
          weight=1e-4,  # lambda
          reduction=4,  # K
          # As the method says, or on (the student also imitates the teacher's prediction: NeM of Q-DM) | off.
          prediction="method",
          prediction_weight=1.0,  # of that term
      )
  )
  config.teacher = training()
  # Instead of training one: the workdir of a run, or a published file (CompVis or DDPM .ckpt, diffusers folder).
  config.teacher.checkpoint = ""
  config.student = training(learning_rate=2e-5)

  config.compute = ConfigDict(
      dict(
          dtype="float32",  # float32 | bfloat16: of activations and products; weights, scales, norms stay float32
          # Computed again for the gradient instead of being kept, for less memory: none | products (norms, activations
          # and quantizers; results of convolutions and matrix products are kept) | blocks (all but the blocks' inputs).
          remat="none",
          accumulate=1,  # parts of a device's share of the batch, one after the other: the same step in less memory
          deterministic=False,  # GPU: bit for bit the same at every run, slower; CPU and TPU are so anyway
      )
  )
  # Over which devices work is shared; changes nothing but speed and memory.
  config.mesh = ConfigDict(
      dict(
          data=0,  # copies of the parameters; 0: as many as there are devices for. The batch is split over all devices
          fsdp=1,  # devices that share one copy of parameters, averages and optimizer state
          min_size=65_536,  # elements from which on a parameter is split over fsdp
      )
  )
  config.guard = ConfigDict(
      dict(
          # A loss or gradient that is not finite: stop | skip (leave the update out and count it; the run ends after
          # 100 such steps in a row).
          non_finite="stop",
          divergence=5.0,  # a loss so many times its running median is reported; 0: never
      )
  )
  config.log = ConfigDict(
      dict(
          every=100,  # steps between log lines, the only ones at which the host waits for the device
          samples_every=0,  # steps between sample grids, a multiple of `every`; 0: none
          samples=64,  # images in such a grid
          diagnostics=True,  # for the report: what the weights do, at each checkpoint; distance of features, at the end
      )
  )
  config.checkpoint = ConfigDict(dict(every=1000, keep=2))  # `every` is a multiple of log.every
  config.export = ConfigDict(
      dict(
          remainder="float32",  # float32 | bfloat16: of what is not quantized (8 bits: quant.edges, which are trained)
          stablehlo=False,  # also a StableHLO program of one sampling step, by the fields of `sample`
          averaged=True,  # the averaged weights; False: those of the last step. Exported, sampled, evaluated
          force=False,  # also of a student in training: what is not binarized yet stays float, a living basis is kept
      )
  )
  config.sample = ConfigDict(
      dict(
          model="",  # a packed file, or teacher | student | shipped (with the package); empty: the workdir's file
          # Of a packed file, by --mode=sample: auto | xla | cpu (native kernel) | float (kernels dequantized).
          # --mode=evaluate takes float.
          backend="auto",
          sampler="ddim",  # ddim | ddpm | plms | dpm_solver++_2m | dpm_solver++_2s
          steps=50,  # runs of the network (plms: one more); ddpm: 0 takes all timesteps
          eta=0.0,  # ddim: 0 deterministic .. 1
          clip=True,  # clip the predicted x0 to [-1, 1]
          dynamic_threshold=0.0,  # above 0: Imagen's thresholding at this percentile, such as 0.995, instead of clip
          guidance=1.0,  # classifier-free: 1 is none; needs model.null_class
          spacing="ldm",  # ldm | leading | linspace | trailing | quadratic | logsnr: see diffusion/timesteps.py
          num_images=64,
          batch_size=64,  # of one process, over its devices; changes nothing but speed and memory
          seed=0,
      )
  )
  config.evaluation = ConfigDict(
      dict(
          num_samples=1024,
          feature_network="none",  # digits_classifier | classifier | inception | none (no Frechet distance)
          classifier="",  # file of binarydm_jax.evaluation.train_classifier, for feature_network="classifier"
          inception_weights="",  # path of pt_inception-2015-12-05-6726825d.pth; nothing is downloaded
          reference="",  # an ADM reference .npz; empty: measured on the training images, kept in the workdir
          reference_images=50_000,  # training images measured for it at most, evenly spread; 0: all
          heldout_images=2048,  # at most so many, evenly spread, are used for the held-out loss
          timesteps_per_image=8,  # of the held-out loss
          batch_size=256,
      )
  )
  return config
