//! The paths of source files as reports show them: relative to the root of the workspace.
//!
//! Tests may come from an archive that another checkout has built, on this machine or on another one. The debug
//! information has the paths of that one; a reader needs those of the one in which the tests run.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::config::registry;
use crate::recorder::symbols::compiled_in;

/// The directory that paths are relative to: that of the workspace, in which the compiler ran. A test runs in that of
/// its package, which is the same or below.
pub(super) fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let here = std::env::current_dir().unwrap_or_default();
        let above = |name: &str| here.ancestors().find(|directory| directory.join(name).exists());
        // Any test's file will do, as the compiler was given it.
        let by_test = || registry::registered().first().and_then(|test| above(test.place.0));
        let is_cargos = || {
            let package = std::env::var_os("CARGO_MANIFEST_DIR")?;
            here.starts_with(package).then_some(())
        };
        let root = by_test().or_else(|| is_cargos().and_then(|()| above("Cargo.lock")));
        root.unwrap_or(&here).to_owned()
    })
}

/// The path of a file as it is shown, for the root `here`: relative, if it lies in this workspace, or in that of the
/// checkout which has built the tests and here as well.
pub(super) fn shown<'a>(file: &'a Path, here: &Path) -> &'a Path {
    // Relative to `/`, paths would only lose their leading slash.
    let below = file.strip_prefix(here).ok().filter(|_| here.parent().is_some());
    let elsewhere = || {
        // Those of std and of the registry lie in no checkout.
        let is_library = file.starts_with("/rustc") || file.to_str()?.contains("/registry/src/");
        let built_in = built_in().filter(|_| !is_library)?;
        file.strip_prefix(built_in).ok().filter(|relative| here.join(relative).exists())
    };
    below.or_else(elsewhere).unwrap_or(file)
}

/// The root of the workspace in which the tests were built.
fn built_in() -> Option<&'static Path> {
    static BUILT_IN: OnceLock<Option<PathBuf>> = OnceLock::new();
    let find = || registry::code_of_tests().and_then(compiled_in);
    BUILT_IN.get_or_init(find).as_deref().filter(|root| root.parent().is_some())
}
