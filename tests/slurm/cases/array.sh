# Every task of an array has its own engines and endpoint, two of them at the same time.
ask_both
submit array.sbatch --array=0-2%2 --gpus=1 -- "$WORK/ask.sh"
finish 240
for part in 0 1 2; do
  expect_output "$COUNTED_ALPHA" "$WORK/${JOB}_$part.log"
  expect_output "part $part is done" "$WORK/${JOB}_$part.log"
done
nothing_left
