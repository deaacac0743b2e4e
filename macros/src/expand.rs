//! Turns an annotated function into a registered test.
//!
//! Two facts of rustc shape the expansion:
//!
//! * In a target with `harness = false` cargo passes `--cfg test` but not `--test`, and rustc
//!   deletes `#[test]` items. What is left there is a static that registers itself before `main`;
//!   a stock target has both.
//! * Attributes expand from the outside in, and a `#[test]` that is reached there deletes the
//!   function with everything below it. So the attribute must stand below those that give the
//!   function its final shape (`tokio::test`, `rstest`), and above the `#[test]` that they add:
//!   the first pass moves it down there, the last pass writes the test.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{quote, quote_spanned};
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{Error, ReturnType, Type};

use crate::args::{Args, GUARD, TRACE, add};
use crate::function::{Function, Kind, check_signature, ignore, kind, not_a_function, should_panic};

/// Which attribute was written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// `#[childproof::test]`: also makes the function a `#[test]`.
    Test,
    /// `#[childproof::guard]`: something above does.
    Guard,
}

/// Whether the attribute may still move down.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pass {
    /// As the user wrote it: foreign attributes may stand below.
    First,
    /// All attributes that had to come first have expanded.
    Last,
}

impl Form {
    fn name(self) -> &'static str {
        match self {
            Form::Test => "`#[childproof::test]`",
            Form::Guard => "`#[childproof::guard]`",
        }
    }
}

/// Expands one attribute. Errors come with the function itself, so that nothing that mentions it
/// fails as well.
pub(crate) fn expand(form: Form, pass: Pass, args: TokenStream, item: TokenStream) -> TokenStream {
    let mut function = match syn::parse2::<Function>(item.clone()) {
        Ok(function) => function,
        Err(error) => {
            let error = not_a_function(form.name(), &item, error).into_compile_error();
            return quote!(#error #item);
        }
    };
    let is_written_guard = form == Form::Guard && pass == Pass::First;
    // A visible `#[test]` says the same as `#[childproof::test]`, so it goes, and `guard` takes
    // its place.
    let form = if function.has(Kind::Test) { Form::Test } else { form };
    function.attributes.retain(|attribute| kind(attribute) != Kind::Test);

    let (mut parsed, mut errors) = Args::parse(args.clone());
    parsed.is_guard |= is_written_guard;
    let twice = function.of_kind(Kind::Ours).next();
    if let Some(attribute) = twice {
        let message = "a test has one `childproof` attribute: put all arguments into one";
        add(&mut errors, Error::new_spanned(attribute.path(), message));
    }
    // Behind a `cfg_attr` anything may stand, also an `ignore` that must be seen.
    let moves = pass == Pass::First
        && (function.has(Kind::Foreign) || function.has(Kind::CfgAttr))
        && twice.is_none();
    if moves && errors.is_none() {
        return move_down(form, &parsed, &args, &function);
    }
    if !moves {
        check_signature(form.name(), &function.signature, &mut errors);
    }
    let ignore = function.string_of(Kind::Ignore, ignore, &mut errors);
    let should_panic = function.string_of(Kind::ShouldPanic, should_panic, &mut errors);
    match errors {
        Some(errors) => give_back(pass, errors, function),
        None => write_test(form, &parsed, &function, ignore.as_deref(), should_panic.as_deref()),
    }
}

/// Writes the attribute again, below all others.
fn move_down(form: Form, parsed: &Args, args: &TokenStream, function: &Function) -> TokenStream {
    let Function { attributes, visibility, signature, body } = function;
    let private = &parsed.private;
    // `rstest` takes every attribute whose path ends in `test` for the one that makes the test.
    let last = match form {
        Form::Test if !function.has_a_test_from_elsewhere() => quote!(#private::test),
        // Where the test is seen below, it is written there all the same.
        Form::Test | Form::Guard => quote!(#private::guard),
    };
    let (check, mark) = check_of_survival(function).unzip();
    let guard = parsed.is_guard.then(|| Ident::new(GUARD, Span::call_site()));
    let guard = guard.map(|guard| quote!(, #guard));
    quote! {
        #[cfg(test)]
        #(#attributes)*
        #[#last(#args #mark #guard)]
        #visibility #signature #body
        #check
    }
}

/// Mentions what the last pass leaves, and says what it must leave for that. A foreign attribute
/// that puts its own `#[test]` above ours deletes the test in a `harness = false` target; that
/// must be an error and not a test that silently never runs.
fn check_of_survival(function: &Function) -> Option<(TokenStream, Option<TokenStream>)> {
    let culprit = function.of_kind(Kind::Foreign).next()?;
    // What may stand behind a `cfg_attr` includes a `cfg`.
    if function.has(Kind::CfgAttr) {
        return None;
    }
    let cfgs: Vec<_> = function.of_kind(Kind::Cfg).collect();
    let name = &function.signature.ident;
    // The error points at the attribute to blame.
    let place = culprit.path().span();
    if function.signature.inputs.is_empty() {
        let name = static_name(name, place);
        let check = quote! {
            #[cfg(test)]
            #(#cfgs)*
            const _: fn() = || { let _ = &#name; };
        };
        return Some((check, None));
    }
    if function.may_nest() {
        return None;
    }
    // With parameters it becomes one test of its own name (`rstest` with fixtures), or several in
    // a module of that name (`rstest` with cases). So the last pass leaves a trace in both: an
    // import by glob, which may be there many times, of a type that is defined here once.
    let (home, trace) = trace_names(name);
    let name = at(name, place);
    let import = quote_spanned!(name.span()=> use self::#name::#trace as _;);
    let check = quote! {
        #[cfg(test)]
        #(#cfgs)*
        mod #home { pub(crate) enum #trace {} }
        #[cfg(test)]
        #(#cfgs)*
        #import
    };
    let mark = Ident::new(TRACE, Span::call_site());
    Some((check, Some(quote!(, #mark = #name))))
}

/// Names the module and the type by which the last pass proves that it was reached.
fn trace_names(name: &Ident) -> (Ident, Ident) {
    let name = name.unraw();
    let named = |text: String| Ident::new(&text, Span::call_site());
    (named(format!("__CHILDPROOF_TRACE_{name}")), named(format!("__ChildproofTrace_{name}")))
}

/// Writes the static that registers the test, and the function that libtest sees.
fn write_test(
    form: Form,
    args: &Args,
    function: &Function,
    ignore: Option<&str>,
    should_panic: Option<&str>,
) -> TokenStream {
    let Function { attributes, visibility, signature, body } = function;
    let private = &args.private;
    let name = &signature.ident;
    let static_name = static_name(name, Span::call_site());
    // As libtest spells it: a raw identifier keeps its `r#`.
    let text = name.to_string();

    let cfgs: Vec<_> = function.of_kind(Kind::Cfg).collect();
    // Wanted on a `pub fn` by `missing_docs`.
    let docs: Vec<_> = attributes.iter().filter(|attribute| attribute.path().is_ident("doc")).collect();
    let ignores: Vec<_> = function.of_kind(Kind::Ignore).collect();
    let kept = attributes
        .iter()
        .filter(|attribute| matches!(kind(attribute), Kind::Inert | Kind::Foreign | Kind::CfgAttr));

    let mut fields = args.fields();
    if let Some(reason) = ignore {
        fields.extend(quote!(ignore: ::core::option::Option::Some(#reason),));
    }
    if let Some(message) = should_panic {
        fields.extend(quote!(should_panic: ::core::option::Option::Some(#message),));
        if form == Form::Guard {
            fields.extend(quote!(libtest_expects_panic: true,));
        }
    }

    // The user's place in the source for messages, but the macro's context: lints about a name or
    // a call that the user did not write stay silent.
    let outer_name = at(name, name.span());
    let report = match &signature.output {
        ReturnType::Default => quote!(#private::report(#outer_name())),
        // Nothing to report, and a call around it would be unreachable code.
        ReturnType::Type(_, output) if matches!(**output, Type::Never(_)) => {
            quote!(#outer_name())
        }
        // A type that cannot be reported is an error at that type.
        ReturnType::Type(_, output) => {
            let place = output.span().resolved_at(Span::call_site());
            let call = at(name, place);
            quote_spanned!(place=> #private::report(#call()))
        }
    };

    // The compiler takes the line from where the call stands: at the name, and not the attribute's.
    // The path of what is called there would be read by the rules of the user's edition.
    let place = quote_spanned!(name.span()=> (__childproof_file!(), __childproof_line!()));
    let outer = match form {
        Form::Test => quote! {
            #[cfg(test)]
            #(#cfgs)*
            #(#docs)*
            #[::core::prelude::v1::test]
            #(#ignores)*
            #visibility fn #outer_name() {
                #static_name.run_in_libtest();
            }
        },
        // The `#[test]` above has expanded and took note of `#[ignore]` and `#[should_panic]`.
        // Where it made no test, the constant keeps the function from being called dead code.
        Form::Guard => quote! {
            #[cfg(test)]
            #(#cfgs)*
            #(#docs)*
            #visibility fn #outer_name() {
                #static_name.run_in_libtest();
            }
            #[cfg(test)]
            #(#cfgs)*
            const _: fn() = #outer_name;
        },
    };
    let trace = args.trace.as_ref().map(|traced| {
        let (home, _) = trace_names(traced);
        let module = at(name, Span::call_site());
        quote! {
            #[cfg(test)]
            #(#cfgs)*
            pub(crate) use #home::*;
            #[cfg(test)]
            #(#cfgs)*
            mod #module { pub(crate) use super::#home::*; }
        }
    });
    quote! {
        #trace
        #[cfg(test)]
        #(#cfgs)*
        static #static_name: #private::Test = {
            #(#kept)*
            #signature #body
            // In a block of its own, where the user's function does not see its names.
            {
                #[used]
                #[unsafe(link_section = ".init_array.00190")]
                static __CHILDPROOF_REGISTER: extern "C" fn() = {
                    extern "C" fn __childproof_register() {
                        #static_name.register();
                    }
                    __childproof_register
                };
            }
            #private::Test::new(
                ::core::module_path!(),
                #text,
                || #report,
                {
                    use ::core::{file as __childproof_file, line as __childproof_line};
                    #place
                },
                const { &#private::Attribute { #fields ..#private::Attribute::NONE } },
            )
        };
        #outer
    }
}

/// Answers with the errors and the function, without what only makes sense on a test.
fn give_back(pass: Pass, errors: Error, mut function: Function) -> TokenStream {
    let errors = errors.into_compile_error();
    if !function.has(Kind::Foreign) {
        function.attributes.retain(|attribute| !matches!(kind(attribute), Kind::Ignore | Kind::ShouldPanic));
    }
    function.attributes.retain(|attribute| kind(attribute) != Kind::Ours);
    // The check of survival must not fail as well.
    let survivor = (pass == Pass::Last).then(|| {
        let name = static_name(&function.signature.ident, Span::call_site());
        quote!(#[cfg(test)] static #name: () = ();)
    });
    quote! {
        #errors
        #survivor
        #[cfg(test)]
        #function
    }
}

/// Names the static of a test.
fn static_name(name: &Ident, span: Span) -> Ident {
    at(&Ident::new(&format!("__CHILDPROOF_{}", name.unraw()), name.span()), span)
}

/// Moves a name to a place in the source, and into the context of the macro.
fn at(name: &Ident, span: Span) -> Ident {
    // The context brings its edition along, and edition 2024 reserves a name that is free before.
    let context = if name == "gen" { name.span() } else { Span::call_site() };
    let mut moved = name.clone();
    moved.set_span(span.resolved_at(context));
    moved
}
