"""The digits with a longer budget: what the method gains over one basis, W1A4; minutes a student on two CPU cores.

  python -m binarydm_jax.study --config=configs/digits_study.py --folder=runs/digits_study [--rows=complete]

One teacher, three seeds of each method, the table; `launch/digits_study.sh` installs what that needs first.
"""

from configs import digits


def get_config():
  config = digits.get_config()
  config.model.update(dict(attention_resolutions=(4, 2)))
  config.teacher.update(dict(steps=2500))
  config.student.update(dict(steps=600, ema_decay=0.995))
  config.log.every = 100
  config.checkpoint.every = 500
  config.sample.update(dict(steps=25, batch_size=128))
  config.evaluation.update(dict(num_samples=1500))
  return config
