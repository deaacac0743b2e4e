//! What stands in the parentheses of an attribute, checked and turned into constants.

use std::time::Duration;

use proc_macro2::{Ident, Span, TokenStream, TokenTree};
use quote::quote;
use syn::ext::IdentExt;
use syn::parse::{ParseStream, Parser};
use syn::{Error, LitStr, Path, Token};

/// In the order in which the documentation lists them.
const NAMES: [&str; 11] = [
    "timeout",
    "grace",
    "processes",
    "allow_process",
    "fds",
    "allow_created_by",
    "unwaited",
    "threads",
    "threaded_fork",
    "serial",
    "crate",
];

/// Not public API: what the first pass adds when it looks for a trace of the last one.
pub(crate) const TRACE: &str = "__trace";
/// Not public API: what the first pass adds when the user wrote `guard`.
pub(crate) const GUARD: &str = "__guard";

const DURATION: &str = "a duration such as `500ms`, `5s` or `2m`";
const TIMEOUT: &str = "a duration above zero such as `500ms`, `5s` or `2m`, or `none`";
const DENY: &str = "`deny` or `allow`";
const THREADED_FORK: &str = "`warn`, `deny` or `allow`";
const FDS: &str = "`pipes`, `all` or `off`";

/// The arguments of one attribute. A field that was not given is `None` or empty.
pub(crate) struct Args {
    timeout: Option<Option<Duration>>,
    grace: Option<Duration>,
    fds: Option<&'static str>,
    deny_processes: Option<bool>,
    deny_unwaited: Option<bool>,
    deny_threads: Option<bool>,
    threaded_fork: Option<&'static str>,
    allow_process: Vec<LitStr>,
    allow_created_by: Vec<LitStr>,
    serial: Option<LitStr>,
    /// The name of the function whose first pass looks for a trace of the last one.
    pub(crate) trace: Option<Ident>,
    /// Whether the first pass saw `guard`.
    pub(crate) is_guard: bool,
    /// Whether the user has given any.
    pub(crate) has_any: bool,
    /// The hidden module of the library that generated code talks to.
    pub(crate) private: TokenStream,
}

impl Args {
    /// Reads the arguments. All errors come at once, so that one compilation shows them all; a
    /// bad argument counts as not given.
    pub(crate) fn parse(tokens: TokenStream) -> (Args, Option<Error>) {
        let mut args = Args {
            timeout: None,
            grace: None,
            fds: None,
            deny_processes: None,
            deny_unwaited: None,
            deny_threads: None,
            threaded_fork: None,
            allow_process: Vec::new(),
            allow_created_by: Vec::new(),
            serial: None,
            trace: None,
            is_guard: false,
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
        self.has_any = true;
        let Some(known) = NAMES.into_iter().find(|known| *known == text) else {
            rest(input);
            return Err(Error::new(name.span(), unknown(&text)));
        };
        let repeatable = matches!(known, "allow_process" | "allow_created_by");
        if !repeatable && seen.contains(&text) {
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
                format!("`{known}` needs a value: `{known} = {}`", example(known)),
            ));
        }
        if known == "crate" {
            let path = crate_path(input)?;
            self.private = quote!(#path::__private);
            return Ok(());
        }
        let value = string(input, known)?;
        self.set(known, value)
    }

    fn set(&mut self, name: &str, value: LitStr) -> syn::Result<()> {
        let (text, span) = (value.value(), value.span());
        let read = match name {
            "timeout" => timeout(&text).map(|limit| self.timeout = Some(limit)).ok_or(TIMEOUT),
            "grace" => duration(&text).map(|grace| self.grace = Some(grace)).ok_or(DURATION),
            "fds" => fds(&text).map(|kinds| self.fds = Some(kinds)).ok_or(FDS),
            "processes" => deny(&text).map(|deny| self.deny_processes = Some(deny)).ok_or(DENY),
            "unwaited" => deny(&text).map(|deny| self.deny_unwaited = Some(deny)).ok_or(DENY),
            "threads" => deny(&text).map(|deny| self.deny_threads = Some(deny)).ok_or(DENY),
            "threaded_fork" => {
                threaded_fork(&text).map(|verdict| self.threaded_fork = Some(verdict)).ok_or(THREADED_FORK)
            }
            // An empty pattern matches nothing, an empty prefix everything, an empty key is a
            // forgotten one: none of them can be meant.
            "allow_process" if text.is_empty() => Err("a glob on the command line such as `sleep *`"),
            "allow_created_by" if text.is_empty() => {
                Err("the beginning of a path such as `signal_hook_registry`")
            }
            "serial" if text.is_empty() => Err("a key such as `port 8080`"),
            "allow_process" => {
                self.allow_process.push(value);
                Ok(())
            }
            "allow_created_by" => {
                self.allow_created_by.push(value);
                Ok(())
            }
            _ => {
                self.serial = Some(value);
                Ok(())
            }
        };
        read.map_err(|valid| {
            let wrong = match text.as_str() {
                "" => format!("the value of `{name}` is empty"),
                _ => format!("invalid value `{text}` for `{name}`"),
            };
            Error::new(span, format!("{wrong}: expected {valid}"))
        })
    }

    /// Writes the fields of the library's `Attribute` that were given.
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
        if let Some(kinds) = self.fds {
            let kinds = Ident::new(kinds, Span::call_site());
            field("fds", some(quote!(#private::Fds::#kinds)));
        }
        if let Some(verdict) = self.threaded_fork {
            let verdict = Ident::new(verdict, Span::call_site());
            field("threaded_fork", some(quote!(#private::ThreadedFork::#verdict)));
        }
        for (name, deny) in [
            ("deny_processes", self.deny_processes),
            ("deny_unwaited", self.deny_unwaited),
            ("deny_threads", self.deny_threads),
        ] {
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
        if let Some(key) = &self.serial {
            field("serial", some(quote!(#key)));
        }
        fields
    }
}

/// Adds `error` to what was found before.
pub(crate) fn add(errors: &mut Option<Error>, error: Error) {
    match errors {
        Some(errors) => errors.combine(error),
        None => *errors = Some(error),
    }
}

/// Splits at the commas that stand in no bracket; a trailing comma ends no argument.
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

/// Takes the tokens up to the end, with the span of the first: what an error points at.
fn rest(input: ParseStream<'_>) -> (TokenStream, Span) {
    let span = input.span();
    (input.parse().unwrap_or_default(), span)
}

fn string(input: ParseStream<'_>, name: &str) -> syn::Result<LitStr> {
    let fork = input.fork();
    if fork.parse::<LitStr>().is_ok() && fork.is_empty() {
        return input.parse();
    }
    // What follows begins like another argument.
    if let (Ok(next), true) = (fork.call(Ident::parse_any), fork.peek(Token![=])) {
        rest(input);
        return Err(Error::new(next.span(), format!("expected `,` before `{next}`")));
    }
    let message = format!("expected a string literal: `{name} = {}`", example(name));
    // On all tokens of the value, not only on the first.
    Err(Error::new_spanned(rest(input).0, message))
}

fn crate_path(input: ParseStream<'_>) -> syn::Result<Path> {
    let tokens = rest(input).0;
    let message = "expected the path of the crate: `crate = childproof` or `crate = \"childproof\"`";
    let error = || Error::new_spanned(&tokens, message);
    if let Ok(text) = syn::parse2::<LitStr>(tokens.clone()) {
        return text.parse_with(Path::parse_mod_style).map_err(|_| error());
    }
    Path::parse_mod_style.parse2(tokens.clone()).map_err(|_| error())
}

fn example(name: &str) -> &'static str {
    match name {
        "timeout" => "\"5s\"",
        "grace" => "\"500ms\"",
        "processes" | "unwaited" | "threads" | "threaded_fork" => "\"deny\"",
        "allow_process" => "\"sleep *\"",
        "fds" => "\"all\"",
        "allow_created_by" => "\"signal_hook_registry\"",
        "serial" => "\"port 8080\"",
        _ => "childproof",
    }
}

fn unknown(name: &str) -> String {
    let instead = match name {
        "ignore" => Some("write `#[ignore]` below; ".to_owned()),
        "should_panic" => Some("write `#[should_panic]` below; ".to_owned()),
        _ => NAMES
            .into_iter()
            .map(|known| (distance(name, known), known))
            .min()
            // Further away it is another word, not a slip.
            .filter(|(distance, known)| *distance <= known.len() / 3 + usize::from(known.len() > 4))
            .map(|(_, known)| format!("did you mean `{known}`? ")),
    };
    let names = NAMES.map(|known| format!("`{known}`")).join(", ");
    format!("unknown argument `{name}`: {}valid are {names}", instead.unwrap_or_default())
}

/// Counts the insertions, deletions and replacements that turn one word into the other.
fn distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.chars().count()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, b) in row.iter_mut().skip(1).zip(to.chars()) {
            let above = *cell;
            let best = (diagonal + usize::from(a != b)).min(above + 1).min(left + 1);
            (diagonal, left, *cell) = (above, best, best);
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

// `duration` and `timeout` are twins of those in the library's `policy`: a proc macro cannot call
// the library it serves, and the attribute must mean what the environment variable means.

/// Reads a duration: a whole or decimal number directly followed by `us`, `ms`, `s`, `m` or `h`.
fn duration(text: &str) -> Option<Duration> {
    let unit = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(unit);
    if !number.starts_with(|c: char| c.is_ascii_digit()) || number.ends_with('.') {
        return None;
    }
    let number: f64 = number.parse().ok()?;
    let scale = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    let seconds = number * scale;
    // A year is more than any test, and keeps every later sum of durations far from overflow.
    (seconds <= 365.0 * 86_400.0).then(|| Duration::from_secs_f64(seconds))
}

/// Reads a timeout: a duration above zero, or `none`.
fn timeout(text: &str) -> Option<Option<Duration>> {
    match text {
        "none" => Some(None),
        _ => duration(text).filter(|limit| !limit.is_zero()).map(Some),
    }
}

/// Names the variant of the library's `Fds`.
fn fds(text: &str) -> Option<&'static str> {
    match text {
        "pipes" => Some("Pipes"),
        "all" => Some("All"),
        "off" => Some("Off"),
        _ => None,
    }
}

/// Names the variant of the library's `ThreadedFork`.
fn threaded_fork(text: &str) -> Option<&'static str> {
    match text {
        "warn" => Some("Warn"),
        "deny" => Some("Deny"),
        "allow" => Some("Allow"),
        _ => None,
    }
}

fn deny(text: &str) -> Option<bool> {
    match text {
        "deny" => Some(true),
        "allow" => Some(false),
        _ => None,
    }
}
