//! Where the preload library lies, and what an engine needs in its environment to be parkable.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::setup::{BUDGET_VARIABLE, ParkSetup};
use crate::units::Bytes;

/// Variable that names the library, for installations of another shape.
pub const LIBRARY_VARIABLE: &str = "SWAPSERVE_PRELOAD";
/// The library's file name.
const FILE: &str = "libswapserve_preload.so";

/// The preload library: where [`LIBRARY_VARIABLE`] says, else beside this program (as cargo builds it), else in
/// `../lib/swapserve` of it (as it is installed).
///
/// # Errors
/// Where it was looked for in vain.
pub fn find() -> Result<PathBuf, String> {
    let named = std::env::var_os(LIBRARY_VARIABLE).map(PathBuf::from);
    let program = std::env::current_exe().unwrap_or_default();
    find_for(named, &program)
}

fn find_for(named: Option<PathBuf>, program: &Path) -> Result<PathBuf, String> {
    let places: Vec<PathBuf> = match named {
        Some(path) => vec![path],
        None => {
            let beside = program.parent().unwrap_or(Path::new("/"));
            vec![beside.join(FILE), beside.join("../lib/swapserve").join(FILE)]
        }
    };
    let found = places.iter().find_map(|path| path.canonicalize().ok());
    found.ok_or_else(|| {
        let places: Vec<String> = places.iter().map(|path| path.display().to_string()).collect();
        format!(
            "the preload library is not there (looked for {}); install it beside the program, or name it in {LIBRARY_VARIABLE}",
            places.join(" and ")
        )
    })
}

/// What makes an engine parkable: the library ([`loaded`]), and the memory server's address. With a budget,
/// `cuMemGetInfo` tells the engine no more than that: for one that sizes its memory by what is free.
pub fn environment(
    library: &Path,
    setup: &ParkSetup,
    budget: Option<Bytes>,
    container: bool,
    others: Option<OsString>,
) -> Vec<(OsString, OsString)> {
    let mut all = loaded(library, container, others);
    all.push(setup.engine_environment());
    all.extend(budget.map(|budget| (BUDGET_VARIABLE.into(), budget.0.to_string().into())));
    all
}

/// What loads the library, before all others. In an Apptainer container it is bound and named there too.
pub fn loaded(library: &Path, container: bool, others: Option<OsString>) -> Vec<(OsString, OsString)> {
    let mut preload = library.as_os_str().to_owned();
    if let Some(others) = others.filter(|others| !others.is_empty()) {
        preload.push(":");
        preload.push(others);
    }
    if container {
        let bind = ("APPTAINER_BIND".into(), bound(library));
        vec![("APPTAINERENV_LD_PRELOAD".into(), preload), bind]
    } else {
        vec![("LD_PRELOAD".into(), preload)]
    }
}

/// The job's own binds, and the library's folder.
fn bound(library: &Path) -> OsString {
    let folder = library.parent().unwrap_or(Path::new("/")).as_os_str().to_owned();
    match std::env::var_os("APPTAINER_BIND").filter(|binds| !binds.is_empty()) {
        Some(mut binds) => {
            binds.push(",");
            binds.push(folder);
            binds
        }
        None => folder,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_found_beside_the_program_or_where_it_is_installed() {
        let root = tempfile::tempdir().unwrap();
        let (bin, lib) = (root.path().join("bin"), root.path().join("lib/swapserve"));
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::create_dir_all(&lib).unwrap();
        let missing = find_for(None, &bin.join("swapserve")).unwrap_err();
        assert!(missing.contains("lib/swapserve/libswapserve_preload.so"), "{missing}");
        std::fs::write(lib.join(FILE), "").unwrap();
        let found = find_for(None, &bin.join("swapserve")).unwrap();
        assert_eq!(found, lib.join(FILE).canonicalize().unwrap());
    }

    #[test]
    fn other_libraries_are_loaded_after_it() {
        let setup = ParkSetup::new(0, crate::gpu::park::nodes::GpuNodes::default()).unwrap();
        let all = environment(Path::new("/a/b.so"), &setup, None, false, Some("/c.so".into()));
        assert!(all.contains(&("LD_PRELOAD".into(), "/a/b.so:/c.so".into())));
        let inside = environment(Path::new("/a/b.so"), &setup, Some(Bytes(7)), true, None);
        assert!(inside.contains(&("APPTAINERENV_LD_PRELOAD".into(), "/a/b.so".into())));
        assert!(inside.contains(&(BUDGET_VARIABLE.into(), "7".into())));
    }
}
