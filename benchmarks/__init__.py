"""Comparisons of ssot with other solvers, and commands that measure one property each.

`python -m benchmarks` runs the comparisons; `convergence`, `descent` and `gpu` are commands of
their own; `pytest benchmarks` times ssot alone.

hard_problems   problems, shared with the tests
competitors     what is compared, behind one signature; `published` has the published algorithms,
                `peers` other libraries
measure         how good a plan is, the same for everybody
timing          side by side at equal accuracy
cases           what is timed, and against whom
curves          residual against time
growth          time against the number of samples and of classes
honesty         who returns a wrong plan without a word
training_step   what pseudo-labels take of a training step of `networks`
report          Markdown and JSON; `pictures` draws, `machine` describes what it ran on
gpu             the Torch backend on a CUDA device, a command of its own; what it measures is in
                `gpu_cases`, and how in `device`
text            numbers and tables, as both reports state them
"""
