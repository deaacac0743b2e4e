//! Why the calls of a command's program are not known, in words.

use std::fmt::{self, Display};

use crate::recorder::preload::{Privilege, Unfit};

impl Display for Unfit {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unfit::NotFound { name } => write!(out, "`{}` was not found", name.display()),
            Unfit::Unreadable { path, error } => write!(out, "`{}` cannot be read: {error}", path.display()),
            Unfit::NotElf { path } => write!(out, "`{}` is not an ELF program", path.display()),
            Unfit::Static { path } => write!(out, "`{}` is linked statically", path.display()),
            Unfit::OtherMachine { path } => {
                write!(out, "`{}` is built for another machine or word size", path.display())
            }
            Unfit::OtherLoader { path, loader } => {
                write!(
                    out,
                    "`{}` uses another C library (its loader is {})",
                    path.display(),
                    loader.display()
                )
            }
            Unfit::Privileged { path, by } => {
                let by = match by {
                    Privilege::SetUser => "set-user-ID",
                    Privilege::SetGroup => "set-group-ID",
                    Privilege::Capabilities => "file capabilities",
                };
                write!(out, "`{}` runs with other rights ({by})", path.display())
            }
            Unfit::Sanitizer { path, name } => write!(out, "`{}` is built with {name}", path.display()),
            Unfit::SanitizerPreloaded { library } => write!(out, "LD_PRELOAD has a sanitizer: {library}"),
            Unfit::ScriptOfEnv { script } => {
                write!(out, "`{}` is started through env, which goes on by exec", script.display())
            }
            Unfit::Nested { path } => write!(out, "`{}` is a script of too many scripts", path.display()),
            Unfit::LibraryPath { path } => {
                write!(out, "{}: LD_PRELOAD cannot have this path", path.display())
            }
            Unfit::LibraryNotExecutable { path } => {
                write!(out, "{}: nothing may be executed there (noexec)", path.display())
            }
            Unfit::NoLibrary => {
                write!(out, "childproof was built without the recorder's library (glibc, linked dynamically)")
            }
        }
    }
}

#[cfg(all(target_env = "gnu", not(target_feature = "crt-static")))]
impl Display for crate::recorder::program_log::LogError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(out, "the recorder's log cannot be read: {error}"),
            Self::NotALog => write!(out, "the recorder's log has no valid header: it was overwritten"),
        }
    }
}
