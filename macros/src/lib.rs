//! The attributes of `childproof`. Use them through that crate, which documents their arguments.
//!
//! `args` parses the arguments, `function` the annotated function; `expand` generates a registered test.
//! `target` detects the kind of target that is compiled, and `serial` converts the attributes of serial_test.

mod args;
mod expand;
mod function;
mod serial;
mod target;

use proc_macro::TokenStream;

use crate::expand::{AttributeName, Pass, expand};

// Documented where `childproof` re-exports them: rustdoc would append this text to that.
#[allow(missing_docs)]
#[proc_macro_attribute]
pub fn test(args: TokenStream, item: TokenStream) -> TokenStream {
    expand(AttributeName::Test, Pass::First, args.into(), item.into()).into()
}

#[allow(missing_docs)]
#[proc_macro_attribute]
pub fn guard(args: TokenStream, item: TokenStream) -> TokenStream {
    expand(AttributeName::Guard, Pass::First, args.into(), item.into()).into()
}

#[allow(missing_docs)]
#[proc_macro]
pub fn policy(args: TokenStream) -> TokenStream {
    expand::policy(args.into()).into()
}

// Not public API: `test` expands to it once the foreign attributes below it have expanded.
#[doc(hidden)]
#[proc_macro_attribute]
pub fn __test(args: TokenStream, item: TokenStream) -> TokenStream {
    expand(AttributeName::Test, Pass::Last, args.into(), item.into()).into()
}

// Not public API: `guard` expands to it once the foreign attributes below it have expanded.
#[doc(hidden)]
#[proc_macro_attribute]
pub fn __guard(args: TokenStream, item: TokenStream) -> TokenStream {
    expand(AttributeName::Guard, Pass::Last, args.into(), item.into()).into()
}
