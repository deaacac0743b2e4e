//! A test harness for code that starts processes.

#[cfg(not(target_os = "linux"))]
compile_error!("childproof runs on Linux 5.9 or newer: it is built on subreapers and pidfds");

mod channel;
mod diagnosis;
mod facts;
mod forkserver;
mod harness;
mod kill;
mod libtest;
mod lifeline;
mod options;
mod outcome;
mod policy;
mod proc;
mod registry;
mod report;
mod serial;
mod supervisor;
mod sys;
mod testproc;
mod wire;

pub use childproof_macros::{guard, test};
pub use harness::Harness;
pub use policy::{Fds, Policy};

/// Makes the `main` of a test target with `harness = false`.
#[macro_export]
macro_rules! main {
    () => {
        fn main() -> ::std::process::ExitCode {
            $crate::Harness::new().run()
        }
    };
}

/// Not public API: what the attributes expand to.
#[doc(hidden)]
#[allow(missing_docs)]
pub mod __private {
    pub use crate::policy::Fds;
    pub use crate::registry::{Attribute, Test};
    pub use childproof_macros::{__guard as guard, __test as test};
    pub use std::process::ExitCode;
    pub use std::time::Duration;

    /// Ends a body as `fn main` would end.
    pub fn report<T: std::process::Termination>(value: T) -> ExitCode {
        value.report()
    }
}
