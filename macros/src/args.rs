//! Parses the arguments of an attribute and turns them into constants.

use std::time::Duration;

use childproof_values::{self as values, Argument, Scope, Value};
use proc_macro2::{Ident, Span, TokenStream, TokenTree};
use quote::quote;
use syn::ext::IdentExt;
use syn::parse::{ParseStream, Parser};
use syn::{Error, LitStr, Path, Token};

/// Not public API: the first pass adds it to have the last pass leave proof that it ran.
pub(crate) const TRACE: &str = "__trace";
/// Not public API: the first pass adds it if the user wrote `guard`.
pub(crate) const GUARD: &str = "__guard";
/// Not public API: the first pass adds it with the path of the first foreign attribute below.
pub(crate) const ABOVE: &str = "__above";

/// What arguments are written for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum ArgumentsOf {
    Test,
    Target,
}

/// The arguments of one attribute. A field that was not given is `None` or empty.
pub(crate) struct Args {
    timeout: Option<Option<Duration>>,
    grace: Option<Duration>,
    fds: Option<Ident>,
    processes: Option<Ident>,
    unused_allowances: Option<Ident>,
    unguarded: Option<Ident>,
    deny_unwaited: Option<bool>,
    deny_threads: Option<bool>,
    threaded_fork: Option<Ident>,
    isolation: Option<Ident>,
    allow_process: Vec<LitStr>,
    allow_created_by: Vec<LitStr>,
    pub(crate) serial: Option<LitStr>,
    /// The name of the function whose first pass checks that the last one ran.
    pub(crate) trace: Option<Ident>,
    /// Whether the first pass saw `guard`.
    pub(crate) is_guard: bool,
    /// The path of a foreign attribute that the first pass saw.
    above: Option<LitStr>,
    /// What they are written for.
    of: ArgumentsOf,
    /// Whether the user has given any argument.
    pub(crate) has_any: bool,
    /// The path of the library's hidden module that generated code uses.
    pub(crate) private: TokenStream,
}

impl Args {
    /// Parses the arguments. Reports all errors at once, so that one compilation shows them all; an invalid
    /// argument counts as not given.
    pub(crate) fn parse(tokens: TokenStream, scope: ArgumentsOf) -> (Args, Option<Error>) {
        let mut args = Args {
            timeout: None,
            grace: None,
            fds: None,
            processes: None,
            unused_allowances: None,
            unguarded: None,
            deny_unwaited: None,
            deny_threads: None,
            threaded_fork: None,
            isolation: None,
            allow_process: Vec::new(),
            allow_created_by: Vec::new(),
            serial: None,
            trace: None,
            is_guard: false,
            above: None,
            of: scope,
            has_any: false,
            private: quote!(::childproof::__private),
        };
        let mut errors = None;
        let mut seen = Vec::new();
        for argument in split_at_commas(tokens) {
            let result = Parser::parse2(|input: ParseStream<'_>| args.argument(input, &mut seen), argument);
            if let Err(error) = result {
                add(&mut errors, error);
            }
        }
        (args, errors)
    }

    fn argument(&mut self, input: ParseStream<'_>, seen: &mut Vec<String>) -> syn::Result<()> {
        // `crate` is a keyword, so `parse_any`.
        let Ok(name) = input.call(Ident::parse_any) else {
            return Err(Error::new(rest(input).1, "expected an argument such as `timeout = \"5s\"`"));
        };
        let text = name.to_string();
        if text == TRACE {
            input.parse::<Token![=]>()?;
            self.trace = Some(input.call(Ident::parse_any)?);
            return Ok(());
        }
        if text == GUARD {
            self.is_guard = true;
            return Ok(());
        }
        if text == ABOVE {
            input.parse::<Token![=]>()?;
            self.above = Some(input.parse()?);
            return Ok(());
        }
        self.has_any = true;
        let Some(known) = values::ARGUMENTS.into_iter().find(|known| known.name == text) else {
            rest(input);
            return Err(Error::new(name.span(), unknown(&text, self.of)));
        };
        if known.scope == Scope::Target && self.of == ArgumentsOf::Test {
            rest(input);
            let message = format!("`{text}` is for a whole target: write it in `childproof::policy!`");
            return Err(Error::new(name.span(), message));
        }
        if !known.repeatable && seen.contains(&text) {
            rest(input);
            return Err(Error::new(
                name.span(),
                format!("argument `{text}` is given twice: remove one of the two"),
            ));
        }
        seen.push(text);
        if input.parse::<Token![=]>().is_err() || input.is_empty() {
            rest(input);
            return Err(Error::new(
                name.span(),
                format!("`{0}` needs a value: `{0} = {1}`", known.name, known.example),
            ));
        }
        if matches!(known.value, Value::Path) {
            let path = crate_path(input)?;
            self.private = quote!(#path::__private);
            return Ok(());
        }
        let value = string(input, known)?;
        self.set(known, value)
    }

    fn set(&mut self, argument: &Argument, value: LitStr) -> syn::Result<()> {
        let (name, text, span) = (argument.name, value.value(), value.span());
        let is_valid = match name {
            "timeout" => set(&mut self.timeout, values::timeout(&text)),
            "grace" => set(&mut self.grace, values::duration(&text)),
            "fds" => set(&mut self.fds, variant(values::FDS_VALUES, &text)),
            "processes" => set(&mut self.processes, variant(values::LEVELS, &text)),
            "unused_allowances" => set(&mut self.unused_allowances, variant(values::LEVELS, &text)),
            "unguarded" => set(&mut self.unguarded, variant(values::LEVELS, &text)),
            "unwaited" => set(&mut self.deny_unwaited, values::deny(&text)),
            "threads" => set(&mut self.deny_threads, values::deny(&text)),
            "isolation" => set(&mut self.isolation, variant(values::ISOLATION_VALUES, &text)),
            "threaded_fork" => set(&mut self.threaded_fork, variant(values::THREADED_FORK_VALUES, &text)),
            // An empty pattern matches nothing, an empty prefix matches everything, an empty key was
            // forgotten: none of them can be intended.
            _ if text.is_empty() => false,
            "allow_process" => {
                self.allow_process.push(value);
                true
            }
            "allow_created_by" => {
                self.allow_created_by.push(value);
                true
            }
            _ => set(&mut self.serial, Some(value)),
        };
        if is_valid {
            return Ok(());
        }
        let wrong = match text.as_str() {
            "" => format!("the value of `{name}` is empty"),
            _ => format!("invalid value `{text}` for `{name}`"),
        };
        Err(Error::new(span, format!("{wrong}: expected {}", argument.value)))
    }

    /// Generates the given fields of the library's `Attribute`.
    pub(crate) fn fields(&self) -> TokenStream {
        let private = &self.private;
        let some = |value: TokenStream| quote!(::core::option::Option::Some(#value));
        let constant = |duration: Duration| {
            let (seconds, nanos) = (duration.as_secs(), duration.subsec_nanos());
            quote!(#private::Duration::new(#seconds, #nanos))
        };
        let mut fields = TokenStream::new();
        let mut field = |name: &str, value: TokenStream| {
            let name = Ident::new(name, Span::call_site());
            fields.extend(quote!(#name: #value,));
        };
        for (name, is_set) in [("is_guard", self.is_guard), ("has_arguments", self.has_any)] {
            if is_set {
                field(name, quote!(true));
            }
        }
        if let Some(timeout) = self.timeout {
            let limit = timeout.map_or(quote!(::core::option::Option::None), |limit| some(constant(limit)));
            field("timeout", some(limit));
        }
        if let Some(grace) = self.grace {
            field("grace", some(constant(grace)));
        }
        if let Some(kinds) = &self.fds {
            field("fds", some(quote!(#private::Fds::#kinds)));
        }
        for (name, level) in [
            ("processes", &self.processes),
            ("unused_allowances", &self.unused_allowances),
            ("unguarded", &self.unguarded),
        ] {
            if let Some(level) = level {
                field(name, some(quote!(#private::Level::#level)));
            }
        }
        if let Some(verdict) = &self.threaded_fork {
            field("threaded_fork", some(quote!(#private::ThreadedFork::#verdict)));
        }
        if let Some(isolation) = &self.isolation {
            field("isolation", some(quote!(#private::Isolation::#isolation)));
        }
        for (name, deny) in [("deny_unwaited", self.deny_unwaited), ("deny_threads", self.deny_threads)] {
            if let Some(deny) = deny {
                field(name, some(quote!(#deny)));
            }
        }
        for (name, list) in
            [("allow_process", &self.allow_process), ("allow_created_by", &self.allow_created_by)]
        {
            if !list.is_empty() {
                field(name, quote!(&[#(#list),*]));
            }
        }
        for (name, text) in [("serial", &self.serial), ("above", &self.above)] {
            if let Some(text) = text {
                field(name, some(quote!(#text)));
            }
        }
        fields
    }
}

/// Adds `error` to the previous errors.
pub(crate) fn add(errors: &mut Option<Error>, error: Error) {
    match errors {
        Some(errors) => errors.combine(error),
        None => *errors = Some(error),
    }
}

/// Splits at the commas outside of brackets; a trailing comma ends no argument.
fn split_at_commas(tokens: TokenStream) -> Vec<TokenStream> {
    let mut arguments = vec![TokenStream::new()];
    for token in tokens {
        match (&token, arguments.last_mut()) {
            (TokenTree::Punct(punct), _) if punct.as_char() == ',' => {
                arguments.push(TokenStream::new());
            }
            (_, Some(argument)) => argument.extend([token]),
            (_, None) => {}
        }
    }
    arguments.retain(|argument| !argument.is_empty());
    arguments
}

/// Takes the tokens up to the end. An error points at the first one's span.
fn rest(input: ParseStream<'_>) -> (TokenStream, Span) {
    let span = input.span();
    (input.parse().unwrap_or_default(), span)
}

fn string(input: ParseStream<'_>, argument: &Argument) -> syn::Result<LitStr> {
    let fork = input.fork();
    if fork.parse::<LitStr>().is_ok() && fork.is_empty() {
        return input.parse();
    }
    // The next tokens look like another argument.
    if let (Ok(next), true) = (fork.call(Ident::parse_any), fork.peek(Token![=])) {
        rest(input);
        return Err(Error::new(next.span(), format!("expected `,` before `{next}`")));
    }
    let message = format!("expected a string literal: `{} = {}`", argument.name, argument.example);
    // At all tokens of the value, not only at the first.
    Err(Error::new_spanned(rest(input).0, message))
}

fn crate_path(input: ParseStream<'_>) -> syn::Result<Path> {
    let tokens = rest(input).0;
    let message = format!("expected {}", Value::Path);
    let error = || Error::new_spanned(&tokens, &message);
    if let Ok(text) = syn::parse2::<LitStr>(tokens.clone()) {
        return text.parse_with(Path::parse_mod_style).map_err(|_| error());
    }
    Path::parse_mod_style.parse2(tokens.clone()).map_err(|_| error())
}

fn unknown(name: &str, of: ArgumentsOf) -> String {
    let is_valid = |known: &&Argument| of == ArgumentsOf::Target || known.scope != Scope::Target;
    let names = || values::ARGUMENTS.into_iter().filter(is_valid).map(|known| known.name);
    let instead = match name {
        "ignore" => Some("write `#[ignore]` below; ".to_owned()),
        "should_panic" => Some("write `#[should_panic]` below; ".to_owned()),
        // Anything less similar is another word, not a typo.
        _ => values::nearest(name, names(), |length| length / 3 + usize::from(length > 4))
            .map(|known| format!("did you mean `{known}`? ")),
    };
    let names: Vec<String> = names().map(|known| format!("`{known}`")).collect();
    format!("unknown argument `{name}`: {}valid are {}", instead.unwrap_or_default(), names.join(", "))
}

/// Stores a valid value; returns whether it was valid.
fn set<T>(field: &mut Option<T>, read: Option<T>) -> bool {
    let is_valid = read.is_some();
    *field = read.or(field.take());
    is_valid
}

/// The variant of the library's `Fds`, `ThreadedFork` or `Isolation`: the value in camel case.
fn variant(choice: values::Choice, value: &str) -> Option<Ident> {
    choice.index(value)?;
    let (first, rest) = value.split_at_checked(1)?;
    Some(Ident::new(&(first.to_uppercase() + rest), Span::call_site()))
}
