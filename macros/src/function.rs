//! The annotated function: parses it, classifies its attributes, and checks that it can be a test.

use proc_macro2::{Group, TokenStream, TokenTree};
use quote::ToTokens;
use syn::ext::IdentExt;
use syn::parse::{Parse, ParseStream};
use syn::{Attribute, Error, Expr, ExprLit, FnArg, Lit, Meta, MetaNameValue, Safety, Signature, Visibility};

use crate::args::add;

/// A function with its body kept as tokens: they are emitted unchanged, with their spans.
pub(crate) struct Function {
    pub(crate) attributes: Vec<Attribute>,
    pub(crate) visibility: Visibility,
    pub(crate) signature: Signature,
    pub(crate) body: Group,
}

impl Parse for Function {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let attributes = input.call(Attribute::parse_outer)?;
        let visibility = input.parse()?;
        let signature = input.parse()?;
        // As a single token, because a body from a `$body:block` of a `macro_rules` macro is wrapped in a
        // group of its own.
        let body = match input.parse()? {
            TokenTree::Group(body) => body,
            other => return Err(Error::new(other.span(), "a test needs a body: `{ .. }`")),
        };
        Ok(Function { attributes, visibility, signature, body })
    }
}

impl ToTokens for Function {
    fn to_tokens(&self, tokens: &mut TokenStream) {
        for attribute in &self.attributes {
            attribute.to_tokens(tokens);
        }
        self.visibility.to_tokens(tokens);
        self.signature.to_tokens(tokens);
        self.body.to_tokens(tokens);
    }
}

/// What an attribute of the function means to the expansion.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The compiler's `#[test]`, by one of its paths.
    Test,
    Ignore,
    ShouldPanic,
    Cfg,
    CfgAttr,
    /// Would warn about the only call, which the expansion generates; no other code can call a test.
    Deprecated,
    /// One of this crate's: the attribute was written twice.
    Ours,
    /// One of serial_test's. Its locks only exclude threads of one process, not other processes.
    Serial,
    /// May stand anywhere relative to the test.
    Inert,
    /// May rewrite the function, and must do so first.
    Foreign,
}

/// Classifies an attribute by its path: a macro cannot resolve names.
pub(crate) fn kind(attribute: &Attribute) -> Kind {
    let path = attribute.path();
    let segments: Vec<String> =
        path.segments.iter().map(|segment| segment.ident.unraw().to_string()).collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    match segments[..] {
        ["test"] | ["core" | "std", "prelude", _, "test"] => Kind::Test,
        ["ignore"] => Kind::Ignore,
        ["should_panic"] => Kind::ShouldPanic,
        ["cfg"] => Kind::Cfg,
        ["cfg_attr"] => Kind::CfgAttr,
        ["deprecated"] => Kind::Deprecated,
        ["childproof", "test" | "guard"] | [.., "__private", "test" | "guard"] => Kind::Ours,
        ["serial" | "parallel" | "file_serial" | "file_parallel"]
        | ["serial_test", "serial" | "parallel" | "file_serial" | "file_parallel"] => Kind::Serial,
        ["doc" | "allow" | "warn" | "deny" | "forbid" | "expect"]
        | ["must_use" | "inline" | "cold" | "track_caller"]
        | ["target_feature" | "no_mangle" | "export_name" | "link_section" | "automatically_derived"]
        | ["rustfmt" | "clippy" | "diagnostic" | "miri" | "rust_analyzer", ..] => Kind::Inert,
        _ => Kind::Foreign,
    }
}

impl Function {
    pub(crate) fn has(&self, wanted: Kind) -> bool {
        self.of_kind(wanted).next().is_some()
    }

    pub(crate) fn of_kind(&self, wanted: Kind) -> impl Iterator<Item = &Attribute> {
        self.attributes.iter().filter(move |attribute| kind(attribute) == wanted)
    }

    /// Finds the attribute that makes it a `#[test]`. Many attributes put the `#[test]` above themselves: it
    /// has expanded before the last pass, and a second one would run the test twice.
    pub(crate) fn test_from_elsewhere(&self) -> Option<&Attribute> {
        self.of_kind(Kind::Foreign).find(|attribute| makes_a_test(attribute))
    }

    /// Finds an attribute that is known to put its `#[test]` above all others.
    pub(crate) fn test_from_above(&self) -> Option<&Attribute> {
        self.of_kind(Kind::Foreign).find(|attribute| makes_a_test_above(attribute))
    }

    /// Whether `rstest` will generate nested modules under its own names: one for each `#[values]` or
    /// `#[files]` of a parameter, here or in a template.
    pub(crate) fn may_nest(&self) -> bool {
        let named = |attribute: &Attribute, names: &[&str]| {
            attribute.path().segments.last().is_some_and(|last| names.iter().any(|name| last.ident == name))
        };
        let parameters = self.signature.inputs.iter().any(|input| match input {
            FnArg::Typed(parameter) => {
                parameter.attrs.iter().any(|attribute| named(attribute, &["values", "files"]))
            }
            FnArg::Receiver(_) => false,
        });
        parameters || self.attributes.iter().any(|attribute| named(attribute, &["apply"]))
    }

    /// Reads the string argument of the attribute of this kind.
    pub(crate) fn string_of(
        &self,
        wanted: Kind,
        read: fn(&Meta) -> syn::Result<String>,
        errors: &mut Option<Error>,
    ) -> Option<String> {
        let attribute = self.of_kind(wanted).next()?;
        read(&attribute.meta).map_err(|error| add(errors, error)).ok()
    }
}

/// Whether an attribute puts a `#[test]` above all others of the function, or above each function that it makes.
fn makes_a_test_above(attribute: &Attribute) -> bool {
    let segments: Vec<String> =
        attribute.path().segments.iter().map(|segment| segment.ident.unraw().to_string()).collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    matches!(
        segments[..],
        [.., "test_case" | "test_matrix" | "quickcheck"]
            | ["test_case", "case"]
            | ["smol_potat" | "test_fork" | "async_std" | "actix_rt" | "actix_web" | "sqlx", "test"]
    )
}

/// Whether an attribute makes the function a `#[test]`, wherever it puts that.
fn makes_a_test(attribute: &Attribute) -> bool {
    let path = attribute.path();
    let is_test = path.segments.last().is_some_and(|last| last.ident == "test");
    makes_a_test_above(attribute) || (is_test && path.segments.len() > 1)
}

/// The path of an attribute as it is written.
pub(crate) fn path_of(attribute: &Attribute) -> String {
    let segments: Vec<String> =
        attribute.path().segments.iter().map(|segment| segment.ident.to_string()).collect();
    segments.join("::")
}

/// Reads `#[ignore]` or `#[ignore = "why"]`.
pub(crate) fn ignore(meta: &Meta) -> syn::Result<String> {
    let read = match meta {
        Meta::Path(_) => Some(String::new()),
        Meta::NameValue(pair) => string_value(pair),
        Meta::List(_) => None,
    };
    let message = "expected `#[ignore]` or `#[ignore = \"reason\"]`";
    read.ok_or_else(|| Error::new_spanned(meta, message))
}

/// Reads `#[should_panic]`, `#[should_panic = ".."]` or `#[should_panic(expected = "..")]`.
pub(crate) fn should_panic(meta: &Meta) -> syn::Result<String> {
    let read = match meta {
        Meta::Path(_) => Some(String::new()),
        Meta::NameValue(pair) => string_value(pair),
        Meta::List(list) => list
            .parse_args::<MetaNameValue>()
            .ok()
            .filter(|pair| pair.path.is_ident("expected"))
            .and_then(|pair| string_value(&pair)),
    };
    let message = "expected `#[should_panic]` or `#[should_panic(expected = \"message\")]`";
    read.ok_or_else(|| Error::new_spanned(meta, message))
}

fn string_value(pair: &MetaNameValue) -> Option<String> {
    match &pair.value {
        Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => Some(text.value()),
        _ => None,
    }
}

/// Refuses signatures that a test cannot have. Only in the last pass: before, a foreign attribute may still
/// change it.
pub(crate) fn check_signature(attribute: &str, signature: &Signature, errors: &mut Option<Error>) {
    let Signature { asyncness, safety, abi, generics, inputs, variadic, .. } = signature;
    let mut refuse = |at: &dyn ToTokens, message: String| {
        add(errors, Error::new_spanned(at.to_token_stream(), message));
    };
    if let Some(token) = asyncness {
        refuse(
            token,
            "a bare `async fn` has no runtime to run on: put `#[tokio::test]` or the test \
             attribute of another runtime on it"
                .to_owned(),
        );
    }
    if let Safety::Unsafe(token) = safety {
        refuse(token, "a test cannot be an `unsafe fn`: put the `unsafe` into its body".to_owned());
    }
    if let Some(abi) = abi {
        refuse(abi, "a test has the Rust calling convention: remove the `extern`".to_owned());
    }
    if !generics.params.is_empty() {
        refuse(
            generics,
            "a test has no generic parameters: remove them, and call a generic function from it".to_owned(),
        );
    }
    match inputs.first() {
        Some(FnArg::Receiver(receiver)) => refuse(
            receiver,
            format!("{} goes on a free function: move this one out of its `impl`", attribute),
        ),
        Some(FnArg::Typed(_)) => {
            refuse(inputs, "a test has no parameters: remove them, or let `#[rstest]` supply them".to_owned())
        }
        None => {}
    }
    if let Some(variadic) = variadic {
        refuse(variadic, "a test has no parameters: remove the `...`".to_owned());
    }
}

/// Describes the item that is not a function.
pub(crate) fn not_a_function(attribute: &str, item: &TokenStream, error: Error) -> Error {
    const ITEMS: [&str; 11] =
        ["struct", "enum", "union", "mod", "impl", "trait", "const", "static", "use", "type", "macro_rules"];
    let mut keyword = None;
    for token in item.clone() {
        if let TokenTree::Ident(ident) = token {
            let text = ident.to_string();
            if text == "fn" {
                // A function that does not parse: one without a body, or new syntax.
                return error;
            }
            if keyword.is_none() && ITEMS.contains(&text.as_str()) {
                keyword = Some(ident);
            }
        }
    }
    match keyword {
        Some(keyword) => {
            let message = format!("{} goes on a function, not on this `{keyword}`", attribute);
            Error::new(keyword.span(), message)
        }
        None => Error::new(error.span(), format!("{} goes on a function", attribute)),
    }
}
