"""The digits with a longer budget: what the method gains over one basis, W1A4; minutes a student on two CPU cores.

  launch/digits_study.sh            # one teacher, three seeds of each method, the table in the README

One run by hand, with the teacher of another:

  python -m binarydm_jax.main --config=configs/digits_study.py --workdir=runs/study/baseline_1 \
    --config.method=baseline --config.seed=1 --config.teacher.checkpoint=runs/study/teacher
"""

from configs import digits


def get_config():
  config = digits.get_config()
  config.model.update(dict(attention_resolutions=(4, 2), norm_groups=32))
  config.teacher.update(dict(steps=2500))
  config.student.update(dict(steps=1200, ema_decay=0.995))
  config.log.every = 100
  config.checkpoint.every = 500
  config.sample.update(dict(steps=25, batch_size=128))
  config.evaluation.update(dict(num_samples=1500))
  return config
