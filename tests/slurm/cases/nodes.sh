# also: linuxproc
# A step over two nodes is a run on each, and each client finds its own; several tasks on one node are refused before anything starts.
cat >"$WORK/own.sh" <<END
#!/bin/bash
set -euo pipefail
export HOME='$WORK'
# Both runs are there before anybody looks for his own.
touch "\$HOME/ready.\$SLURM_NODEID"
until [ -e "\$HOME/ready.0" ] && [ -e "\$HOME/ready.1" ]; do sleep 0.1; done
swapserve env --quiet >"\$HOME/env.\$SLURM_NODEID"
grep -qF "OPENAI_BASE_URL=\$OPENAI_BASE_URL" "\$HOME/env.\$SLURM_NODEID" && echo "node \$SLURM_NODEID found its own"
ls "\$HOME/.swapserve/jobs" | sed 's/^/published /'
python '$CLIENTS/chat.py' alpha 'Count.'
END
chmod 700 "$WORK/own.sh"
cat >"$WORK/job.sh" <<END
#!/bin/bash
export HOME='$WORK'
srun --nodes=1 --ntasks=2 swapserve run -- true
echo "refused with \$?"
srun --nodes=2 --ntasks-per-node=1 --ntasks=2 swapserve run -- '$WORK/own.sh'
END
LOG=$WORK/job.log
JOB=$(sbatch --parsable "${SMALL[@]}" --nodes=2 --ntasks-per-node=2 --output="$LOG" "$WORK/job.sh")
finish 120
expect_state COMPLETED 0:0
expect_output 'this step has 2 tasks on this node'
expect_output '^refused with 64$'
expect_output '^node 0 found its own$'
expect_output '^node 1 found its own$'
expect_output "^published $JOB-n1.json\$"
expect_output "^published $JOB-n2.json\$"
expect_output "$COUNTED_ALPHA"
nothing_left
