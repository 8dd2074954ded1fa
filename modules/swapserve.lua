-- Modulefile for Lmod. scripts/install fills in @PREFIX@ and @VERSION@.

local prefix  = "@PREFIX@"
local version = "@VERSION@"

help([[
swapserve ]] .. version .. [[: one Slurm allocation, many language models behind one OpenAI-compatible endpoint.

  srun swapserve run --config models.toml -- python evaluate.py

Job scripts and configurations to start from: $SWAPSERVE_HOME/share/swapserve; manual: man swapserve.
]])

whatis("Name: swapserve")
whatis("Version: " .. version)
whatis("Description: swaps language-model engines on a job's GPUs behind one OpenAI-compatible endpoint")

-- Loading another version replaces this one.
family("swapserve")

setenv("SWAPSERVE_HOME", prefix)
prepend_path("PATH", pathJoin(prefix, "bin"))
-- Where MANPATH is unset, man finds share/man beside bin on PATH; setting it would hide the system's pages.
if os.getenv("MANPATH") then
   prepend_path("MANPATH", pathJoin(prefix, "share/man"))
end
