//! Converts the attributes of `serial_test`.
//!
//! Its locks are in memory, and tests in processes of their own share none. So its attributes become the
//! argument `serial`. One that stands above ours has expanded before: it is recognised by the call that it
//! generated.

use proc_macro2::{Delimiter, Group, Span, TokenStream, TokenTree};
use syn::{Error, LitStr, Meta};

use crate::args::{Args, add};
use crate::function::{Function, Kind, path_of};

/// The key of `#[serial]` without one.
const DEFAULT: &str = "serial_test";

/// Removes the attributes of `serial_test` and adds their key to `args`, unless it has one.
pub(crate) fn take(function: &mut Function, args: &mut Args, errors: &mut Option<Error>) {
    let found: Vec<(Position, Vec<String>)> = function
        .of_kind(Kind::Serial)
        .map(|attribute| {
            let span = syn::spanned::Spanned::span(attribute.path());
            let keys = match &attribute.meta {
                Meta::List(list) => keys(list.tokens.clone()),
                _ => Vec::new(),
            };
            (Position { name: path_of(attribute), span }, keys)
        })
        .collect();
    function.attributes.retain(|attribute| crate::function::kind(attribute) != Kind::Serial);
    for (place, keys) in &found {
        set(place, keys, args, errors);
    }
    if let (true, Some((name, keys))) = (found.is_empty(), call(function.body.stream())) {
        // The attribute has been replaced by the code that it generated.
        set(&Position { name, span: Span::call_site() }, &keys, args, errors);
    }
}

/// The attribute that a key comes from.
struct Position {
    name: String,
    span: Span,
}

fn set(place: &Position, keys: &[String], args: &mut Args, errors: &mut Option<Error>) {
    let Position { name, span } = place;
    let key = match keys {
        [] => DEFAULT,
        [key] if key.is_empty() => DEFAULT,
        [key] => key,
        [..] => {
            let message = format!(
                "`#[{name}]` with several keys keeps no two processes apart, and each test is one: remove it, and \
                 give all tests that exclude each other one key, `serial = \"{}\"`",
                keys[0]
            );
            return add(errors, Error::new(*span, message));
        }
    };
    match &args.serial {
        None => args.serial = Some(LitStr::new(key, *span)),
        Some(other) if other.value() == key => {}
        Some(other) => {
            let message = format!(
                "the test has two serial keys, `{key}` by `#[{name}]` and `{}`: remove one of the two",
                other.value()
            );
            add(errors, Error::new(*span, message));
        }
    }
}

/// The keys in the parentheses of `#[serial(..)]`: names, among arguments such as `path => ".."`.
fn keys(tokens: TokenStream) -> Vec<String> {
    let mut keys = Vec::new();
    let mut begins = true;
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        match token {
            TokenTree::Punct(punct) if punct.as_char() == ',' => begins = true,
            TokenTree::Ident(key) => {
                let is_option =
                    matches!(tokens.peek(), Some(TokenTree::Punct(punct)) if punct.as_char() == '=');
                if begins && !is_option {
                    keys.push(key.to_string());
                }
                begins = false;
            }
            _ => begins = false,
        }
    }
    keys
}

/// Finds the call that an attribute of `serial_test` generated around a body, `local_serial_core(vec!["key"],
/// ..)`: returns the name of the attribute and the keys.
fn call(tokens: TokenStream) -> Option<(String, Vec<String>)> {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    for (at, token) in tokens.iter().enumerate() {
        let found = match (token, tokens.get(at + 1)) {
            (TokenTree::Ident(name), Some(TokenTree::Group(arguments))) => {
                attribute_of(&name.to_string()).map(|name| (name, literals(arguments)))
            }
            (TokenTree::Group(group), _) => call(group.stream()),
            _ => None,
        };
        if found.is_some() {
            return found;
        }
    }
    None
}

/// The attribute that generates calls of this function.
fn attribute_of(function: &str) -> Option<String> {
    let function = function.strip_suffix("_with_return").unwrap_or(function).strip_suffix("_core")?;
    let (place, kind) = function.split_once('_')?;
    let kind = kind.strip_prefix("async_").unwrap_or(kind);
    let before = match place {
        "local" => "",
        "fs" => "file_",
        _ => return None,
    };
    matches!(kind, "serial" | "parallel").then(|| format!("{before}{kind}"))
}

/// The literals of `(vec!["a", "b"], ..)`.
fn literals(arguments: &Group) -> Vec<String> {
    let list = arguments.stream().into_iter().find_map(|token| match token {
        TokenTree::Group(list) if list.delimiter() == Delimiter::Bracket => Some(list.stream()),
        _ => None,
    });
    let literals = list.into_iter().flatten().filter_map(|token| syn::parse2::<LitStr>(token.into()).ok());
    literals.map(|literal| literal.value()).collect()
}

#[cfg(test)]
mod tests {
    use quote::quote;

    use super::*;

    #[test]
    fn keys_are_names_and_no_options() {
        assert_eq!(keys(quote!()), [""; 0]);
        assert_eq!(keys(quote!(a, b)), ["a", "b"]);
        assert_eq!(keys(quote!(a, path => "/tmp/x", crate = b::c, inner_attrs = [d(1), e])), ["a"]);
    }

    #[test]
    fn a_call_is_found_wherever_it_stands() {
        let found = |tokens| call(tokens).map(|(name, keys)| format!("{name} {}", keys.join(",")));
        let plain = quote!(serial_test::local_serial_core(vec![""], ::std::option::Option::None, || {}););
        assert_eq!(found(plain).as_deref(), Some("serial "));
        let deep = quote!(let body = async { fn f() {} x::fs_async_parallel_core_with_return(vec!["a", "b"], None, f()).await; };);
        assert_eq!(found(deep).as_deref(), Some("file_parallel a,b"));
        assert_eq!(
            found(quote!(let local_serial_core = 1; core(vec![""]); remote_serial_core(vec![""]))),
            None
        );
    }
}
