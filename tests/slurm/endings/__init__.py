"""Jobs on the development cluster that are ended in every way there is, and what each end leaves.

watch.py  every process on the machine, looked at by one thread for all jobs
job.py    a job, brought into a state; what there is of it
table.py  the ends
lab.py    the cluster, and many cases at once on it
"""
