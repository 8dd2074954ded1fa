# The warning of --signal comes before the time is up, and the service goes by itself. (Slurm looks at limits every
# 30 seconds, and warns a job that is shorter than the warning at its first look.)
submit service.sbatch --time=1 --signal=TERM@20
finish 100
[ "$(job_field JobState)" != TIMEOUT ] || fail "the service to end before it is killed at its time limit"
nothing_left
