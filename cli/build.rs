//! Builds the recorder's library, which is embedded in the tool, with the compiler that builds the tool and
//! nothing else. `recorder` is the directory of the crate with its source; a package contains a copy of it.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let source = Path::new("recorder");
    println!("cargo::rerun-if-changed={}", source.display());
    let out = PathBuf::from(variable("OUT_DIR"));
    // The recorder recognises itself in LD_PRELOAD by this name.
    let library = out.join("libchildproof_recorder.so");
    println!("cargo::rustc-env=RECORDER_LIBRARY={}", library.display());
    println!("cargo::rustc-check-cfg=cfg(recorder)");
    let has =
        |name: &str, value: &str| env::var(name).is_ok_and(|all| all.split(',').any(|one| one == value));
    // The library calls the C library behind it: with another C library, or a static one, there is none.
    if !has("CARGO_CFG_TARGET_OS", "linux")
        || !has("CARGO_CFG_TARGET_ENV", "gnu")
        || has("CARGO_CFG_TARGET_FEATURE", "crt-static")
    {
        return;
    }
    println!("cargo::rustc-cfg=recorder");
    let mut rustc = Command::new(variable("RUSTC"));
    rustc
        .arg(source.join("library.rs"))
        .args(["--crate-name", "childproof_recorder", "--crate-type", "cdylib", "--edition", "2024"])
        .args(["--target", &variable("TARGET")])
        // With all of `core` in one unit, unused parts are dropped, including those that would need std.
        .args(["-C", "opt-level=2", "-C", "lto=fat", "-C", "codegen-units=1", "-C", "panic=abort"])
        // Stacks are walked with these tables.
        .args(["-C", "force-unwind-tables=yes", "-C", "strip=symbols"])
        // An undefined symbol must be an error here, and not when the library is loaded.
        .args(["-C", "link-arg=-Wl,-z,defs"])
        // Some of it is used only by the crate.
        .args(["-A", "dead_code"])
        .arg("-o")
        .arg(&library);
    if let Some(linker) = env::var_os("RUSTC_LINKER") {
        let mut argument = std::ffi::OsString::from("linker=");
        argument.push(linker);
        rustc.arg("-C").arg(argument);
    }
    let output = rustc.output().unwrap_or_else(|error| panic!("{rustc:?} cannot be run: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the recorder's library cannot be built: {rustc:?}\n{said}");
    for line in said.lines().filter(|line| line.starts_with("warning: ")) {
        println!("cargo::warning=the recorder's library: {line}");
    }
    assert!(fs::metadata(&library).is_ok_and(|file| file.len() > 0), "{rustc:?} has made no library");
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|error| panic!("cargo sets {name}: {error}"))
}
