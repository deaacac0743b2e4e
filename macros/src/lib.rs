//! The attributes of `childproof`. Use them through that crate, which documents their arguments.
//!
//! `args` reads what stands in the parentheses, `function` what stands below; `expand` makes a
//! registered test of both.

mod args;
mod expand;
mod function;

use proc_macro::TokenStream;

use crate::expand::{Form, Pass, expand};

// Documented where `childproof` exports them: rustdoc would put these words behind those.
#[allow(missing_docs)]
#[proc_macro_attribute]
pub fn test(args: TokenStream, item: TokenStream) -> TokenStream {
    expand(Form::Test, Pass::First, args.into(), item.into()).into()
}

#[allow(missing_docs)]
#[proc_macro_attribute]
pub fn guard(args: TokenStream, item: TokenStream) -> TokenStream {
    expand(Form::Guard, Pass::First, args.into(), item.into()).into()
}

// Not public API: what `test` becomes once it has let the foreign attributes below it go first.
#[doc(hidden)]
#[proc_macro_attribute]
pub fn __test(args: TokenStream, item: TokenStream) -> TokenStream {
    expand(Form::Test, Pass::Last, args.into(), item.into()).into()
}

// Not public API: what `guard` becomes once it has let the foreign attributes below it go first.
#[doc(hidden)]
#[proc_macro_attribute]
pub fn __guard(args: TokenStream, item: TokenStream) -> TokenStream {
    expand(Form::Guard, Pass::Last, args.into(), item.into()).into()
}
