"""Training of teacher and student: the problem a config stands for, one compiled step, loop, checkpoints, logs."""
