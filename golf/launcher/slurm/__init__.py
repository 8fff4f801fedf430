"""launch=slurm: every run of a sweep as a job of the cluster's scheduler, in the same folder as anywhere else."""
