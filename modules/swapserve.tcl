#%Module1.0
## Modulefile for Environment Modules (Tcl). scripts/install fills in @PREFIX@ and @VERSION@.

set prefix  @PREFIX@
set version @VERSION@

proc ModulesHelp {} {
    global version
    puts stderr "swapserve $version: one Slurm allocation, many language models behind one OpenAI-compatible endpoint."
    puts stderr ""
    puts stderr "  srun swapserve run --config models.toml -- python evaluate.py"
    puts stderr ""
    puts stderr "Job scripts and configurations to start from: \$SWAPSERVE_HOME/share/swapserve; manual: man swapserve."
}

module-whatis "Name: swapserve"
module-whatis "Version: $version"
module-whatis "Description: swaps language-model engines on a job's GPUs behind one OpenAI-compatible endpoint"

# Two versions at once would share PATH.
conflict swapserve

setenv       SWAPSERVE_HOME $prefix
prepend-path PATH           $prefix/bin
# Where MANPATH is unset, man finds share/man beside bin on PATH; setting it would hide the system's pages.
if { [info exists env(MANPATH)] } {
    prepend-path MANPATH $prefix/share/man
}
