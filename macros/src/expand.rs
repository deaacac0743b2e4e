//! Turns an annotated function into a registered test.
//!
//! Three facts of rustc shape the expansion:
//!
//! * In a target with `harness = false` cargo passes `--cfg test` but not `--test`, and rustc deletes
//!   `#[test]` items. So the expansion is a static that registers itself before `main`; a stock target has
//!   both.
//! * Attributes expand from the outside in, and where tests are not compiled a `#[test]` that is reached
//!   deletes the function with everything below it. So the attribute must stand below those that give the
//!   function its final shape (`tokio::test`, `rstest`), and above the `#[test]` that they add: the first
//!   pass moves it down there, the last pass generates the test.
//! * The path of a function depends on where it is defined, and tests read their own
//!   ([`std::any::type_name`]). So the user's function stays where it is if the kind of target is known: see
//!   [`Shape`].

use proc_macro2::{Group, Ident, Span, TokenStream, TokenTree};
use quote::{quote, quote_spanned};
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{Error, ReturnType, Type};

use crate::args::{ABOVE, Args, ArgumentsOf, GUARD, TRACE, add};
use crate::function::{Function, Kind, check_signature, ignore, kind, not_a_function, path_of, should_panic};
use crate::serial;
use crate::target::Target;

/// Which attribute was written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum AttributeName {
    /// `#[childproof::test]`: also makes the function a `#[test]`.
    Test,
    /// `#[childproof::guard]`: another attribute makes it a `#[test]`.
    Guard,
}

/// Whether the attribute may still move down.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pass {
    /// As the user wrote it: foreign attributes may stand below.
    First,
    /// All attributes that must expand before it have expanded.
    Last,
}

impl AttributeName {
    fn name(self) -> &'static str {
        match self {
            AttributeName::Test => "`#[childproof::test]`",
            AttributeName::Guard => "`#[childproof::guard]`",
        }
    }
}

/// Expands one attribute. Errors come together with the function itself, so that code that mentions it still
/// compiles.
pub(crate) fn expand(form: AttributeName, pass: Pass, args: TokenStream, item: TokenStream) -> TokenStream {
    let mut function = match syn::parse2::<Function>(item.clone()) {
        Ok(function) => function,
        Err(error) => {
            let error = not_a_function(form.name(), &item, error).into_compile_error();
            return quote!(#error #item);
        }
    };
    let target = Target::of_this_compilation();
    let is_written_guard = form == AttributeName::Guard && pass == Pass::First;
    // Another attribute may need to see the `#[test]`. It stays only where it is not dropped, and where none
    // adds a second one.
    let keeps_test = pass == Pass::First
        && target == Target::Libtest
        && function.has(Kind::Test)
        && function.has(Kind::Foreign)
        && function.test_from_elsewhere().is_none();
    // A visible `#[test]` means the same as `#[childproof::test]`, so otherwise it is removed, and `guard`
    // takes its place.
    let form = match (function.has(Kind::Test), keeps_test) {
        (true, false) => AttributeName::Test,
        (true, true) => AttributeName::Guard,
        (false, _) => form,
    };
    if !keeps_test {
        function.attributes.retain(|attribute| kind(attribute) != Kind::Test);
    }

    let (mut parsed, mut errors) = Args::parse(args.clone(), ArgumentsOf::Test);
    parsed.is_guard |= is_written_guard;
    serial::take(&mut function, &mut parsed, &mut errors);
    if pass == Pass::First && target == Target::OwnHarness {
        refuse_a_test_that_is_dropped(form, &function, &mut errors);
    }
    let twice = function.of_kind(Kind::Ours).next();
    if let Some(attribute) = twice {
        let message = "a test has one `childproof` attribute: put all arguments into one";
        add(&mut errors, Error::new_spanned(attribute.path(), message));
    }
    // A `cfg_attr` may hide any attribute, also an `ignore` that must be seen.
    let moves = pass == Pass::First
        && (function.has(Kind::Foreign) || function.has(Kind::CfgAttr))
        && twice.is_none();
    if moves && errors.is_none() {
        return move_down(form, target, &parsed, &args, &function);
    }
    if !moves {
        check_signature(form.name(), &function.signature, &mut errors);
    }
    let ignore = function.string_of(Kind::Ignore, ignore, &mut errors);
    let should_panic = function.string_of(Kind::ShouldPanic, should_panic, &mut errors);
    match errors {
        Some(errors) => give_back(pass, errors, function),
        None => {
            let shape = Shape::of(form, target, &function);
            write_test(form, shape, &parsed, &function, ignore.as_deref(), should_panic.as_deref())
        }
    }
}

/// Refuses a test that rustc would silently drop, in a target with `harness = false`.
fn refuse_a_test_that_is_dropped(form: AttributeName, function: &Function, errors: &mut Option<Error>) {
    if let Some(culprit) = function.test_from_above() {
        let path = path_of(culprit);
        let message = format!(
            "`#[{path}]` makes the `#[test]` itself, above all other attributes, and rustc silently drops that in a \
             target with `harness = false`: move it to a target without, where `#[childproof::guard]` goes below \
             `#[{path}]`"
        );
        add(errors, Error::new_spanned(culprit.path(), message));
    }
    let may_be_a_test = function.has(Kind::Foreign) || function.has(Kind::CfgAttr);
    if form == AttributeName::Guard && !may_be_a_test && !function.has(Kind::Ours) {
        let message = "nothing makes this function a test: write `#[childproof::test]` in place of \
                       `#[childproof::guard]`, which guards what is a `#[test]` already";
        add(errors, Error::new(Span::call_site(), message));
    }
}

/// Writes the attribute again, below all others.
fn move_down(
    form: AttributeName,
    target: Target,
    parsed: &Args,
    args: &TokenStream,
    function: &Function,
) -> TokenStream {
    let Function { attributes, visibility, signature, body } = function;
    let private = &parsed.private;
    // `rstest` takes every attribute with a path that ends in `test` for the one that makes the test.
    let last = match form {
        AttributeName::Test if function.test_from_elsewhere().is_none() => quote!(#private::test),
        // Where the `#[test]` is visible below, it is kept all the same.
        AttributeName::Test | AttributeName::Guard => quote!(#private::guard),
    };
    // With libtest a `#[test]` drops nothing.
    let check = (target != Target::Libtest).then(|| check_of_survival(private, function)).flatten();
    let (check, mark) = check.unzip();
    let doc_hidden = |name: &str| Ident::new(name, Span::call_site());
    let guard = parsed.is_guard.then(|| doc_hidden(GUARD)).map(|guard| quote!(, #guard));
    let above =
        function.test_from_elsewhere().or_else(|| function.of_kind(Kind::Foreign).next()).map(|above| {
            let (name, path) = (doc_hidden(ABOVE), path_of(above));
            quote!(, #name = #path)
        });
    // The key came from an attribute that has been removed, or is among the arguments.
    let has_key = Args::parse(args.clone(), ArgumentsOf::Test).0.serial.is_some();
    let serial = parsed.serial.as_ref().filter(|_| !has_key).map(|key| {
        let name = doc_hidden("serial");
        quote!(, #name = #key)
    });
    quote! {
        #[cfg(test)]
        #(#attributes)*
        #[#last(#args #serial #mark #guard #above)]
        #visibility #signature #body
        #check
    }
}

/// Refers to an item that the last pass must generate. A foreign attribute that puts its own `#[test]` above
/// ours deletes the test in a `harness = false` target; that must be an error, not a test that silently never
/// runs.
fn check_of_survival(
    private: &TokenStream,
    function: &Function,
) -> Option<(TokenStream, Option<TokenStream>)> {
    let culprit = function.of_kind(Kind::Foreign).next()?;
    // A `cfg_attr` may hide a `cfg`.
    if function.has(Kind::CfgAttr) {
        return None;
    }
    let cfgs: Vec<_> = function.of_kind(Kind::Cfg).collect();
    let name = &function.signature.ident;
    // The error points at the attribute that causes it.
    let place = culprit.path().span();
    if function.signature.inputs.is_empty() {
        // The test's static takes precedence over a name from a glob import. So the name always exists; if it
        // is not the test's, its type lacks a trait impl, and the message of that error explains why.
        let static_name = static_name(name, place);
        let path = path_of(culprit);
        let message = format!(
            "`#[{path}]` makes the `#[test]` itself, above all other attributes, and rustc silently drops that in a target \
             with `harness = false`"
        );
        let note = format!(
            "move the test to a target without `harness = false`, where `#[childproof::guard]` goes below `#[{path}]`"
        );
        let home = Ident::new(&format!("__CHILDPROOF_MISSING_{}", name.unraw()), Span::call_site());
        let judged = quote_spanned!(place=> &#static_name);
        let check = quote! {
            #[cfg(test)]
            #(#cfgs)*
            #[allow(non_snake_case, non_upper_case_globals, dead_code)]
            mod #home {
                pub(crate) struct Dropped;
                pub(crate) mod fallback {
                    pub(crate) static #static_name: super::Dropped = super::Dropped;
                }
                #[diagnostic::on_unimplemented(message = #message, note = #note, label = "makes the `#[test]` itself")]
                pub(super) trait IsATest: Sized {}
                impl IsATest for #private::Test {}
                pub(super) fn check<T: IsATest>(_: &T) {}
            }
            #[cfg(test)]
            #(#cfgs)*
            #[allow(unused_imports)]
            use self::#home::fallback::*;
            #[cfg(test)]
            #(#cfgs)*
            const _: fn() = || self::#home::check(#judged);
        };
        return Some((check, None));
    }
    if function.may_nest() {
        return None;
    }
    // With parameters it becomes one test under its own name (`rstest` with fixtures), or several in a module of
    // that name (`rstest` with cases). In both, the last pass leaves a glob import, which may be repeated, of a
    // type that is defined here once.
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

/// The names of the module and the type by which the last pass proves that it ran.
fn trace_names(name: &Ident) -> (Ident, Ident) {
    let name = name.unraw();
    let named = |text: String| Ident::new(&text, Span::call_site());
    (named(format!("__CHILDPROOF_TRACE_{name}")), named(format!("__ChildproofTrace_{name}")))
}

/// Where the user's function is placed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// Where the user wrote it, alone: there is no libtest.
    Alone,
    /// Where the user wrote it. libtest calls it too: then it first runs the test in a process of its own,
    /// and returns a passed test's value.
    Entered,
    /// Inside the test's static. A function for libtest may take its place, and is dropped in a target with
    /// `harness = false`.
    Inside,
}

impl Shape {
    fn of(form: AttributeName, target: Target, function: &Function) -> Shape {
        // Attributes that are still to expand would see more than the user's function.
        let is_final = !function.has(Kind::Foreign) && !function.has(Kind::CfgAttr);
        match target {
            Target::OwnHarness if is_final || form == AttributeName::Test => Shape::Alone,
            Target::Libtest if is_final && can_be_made(&function.signature.output) => Shape::Entered,
            _ => Shape::Inside,
        }
    }
}

/// Whether a value of this type can be made for a test that passed in another process: `()`, a `Result`
/// (judged by the end of its name), or an `ExitCode`.
fn can_be_made(output: &ReturnType) -> bool {
    match output {
        ReturnType::Default => true,
        ReturnType::Type(_, output) => match &**output {
            Type::Tuple(tuple) => tuple.elems.is_empty(),
            Type::Path(path) => path.path.segments.last().is_some_and(|last| {
                let name = last.ident.unraw().to_string();
                name.ends_with("Result") || name == "ExitCode"
            }),
            _ => false,
        },
    }
}

/// Generates the static that registers the test, and the function that libtest sees.
#[allow(clippy::too_many_lines, reason = "one template, in the order of what it writes")]
fn write_test(
    form: AttributeName,
    shape: Shape,
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
    // `missing_docs` requires them on a `pub fn`.
    let docs: Vec<_> = attributes.iter().filter(|attribute| attribute.path().is_ident("doc")).collect();
    let ignores: Vec<_> = function.of_kind(Kind::Ignore).collect();
    let kept: Vec<_> = attributes
        .iter()
        .filter(|attribute| matches!(kind(attribute), Kind::Inert | Kind::Foreign | Kind::CfgAttr))
        .collect();

    let mut fields = args.fields();
    if let Some(reason) = ignore {
        fields.extend(quote!(ignore: ::core::option::Option::Some(#reason),));
    }
    if let Some(message) = should_panic {
        fields.extend(quote!(should_panic: ::core::option::Option::Some(#message),));
        if form == AttributeName::Guard {
            fields.extend(quote!(libtest_expects_panic: true,));
        }
    }
    // Elsewhere it runs without a `#[test]`.
    let needs_test = form == AttributeName::Guard && shape != Shape::Alone;
    if needs_test {
        fields.extend(quote!(needs_test: true,));
    }
    let register = match shape {
        _ if needs_test => quote!(register_guard),
        Shape::Alone => quote!(register),
        Shape::Entered | Shape::Inside => quote!(register_in_libtest),
    };

    // Spans at the user's source for messages, but in the macro's context: lints do not report a name or a
    // call that the user did not write.
    let outer_name = at(name, name.span());
    let report = match &signature.output {
        ReturnType::Default => quote!(#private::report(#outer_name())),
        // There is no value to report, and a call around it would be unreachable code.
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

    // The compiler takes the line from the position of the call: the name's, not the attribute's. A path in
    // the call would be resolved by the rules of the user's edition.
    let place = quote_spanned!(name.span()=> (__childproof_file!(), __childproof_line!()));
    let inside = (shape == Shape::Inside).then(|| quote!(#(#kept)* #signature #body));
    let report = match shape {
        Shape::Entered => quote!({
            #static_name.enter_body();
            #report
        }),
        Shape::Alone | Shape::Inside => report,
    };
    let outer = match (shape, form) {
        (Shape::Alone, _) => quote! {
            #[cfg(test)]
            #(#cfgs)*
            #(#kept)*
            #visibility #signature #body
        },
        (Shape::Entered, _) => {
            let test =
                (form == AttributeName::Test).then(|| quote!(#[::core::prelude::v1::test] #(#ignores)*));
            let body = entered(private, &static_name, body);
            quote! {
                #[cfg(test)]
                #(#cfgs)*
                #test
                #(#kept)*
                #visibility #signature #body
            }
        }
        (Shape::Inside, AttributeName::Test) => quote! {
            #[cfg(test)]
            #(#cfgs)*
            #(#docs)*
            #[::core::prelude::v1::test]
            #(#ignores)*
            #visibility fn #outer_name() {
                #static_name.run_in_libtest();
            }
        },
        // The `#[test]` above has expanded and has read `#[ignore]` and `#[should_panic]`. Where it made no
        // test, the constant prevents a dead-code warning for the function.
        (Shape::Inside, AttributeName::Guard) => quote! {
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
    let before_main = before_main(&quote!(#static_name.#register()));
    quote! {
        #trace
        #[cfg(test)]
        #(#cfgs)*
        static #static_name: #private::Test = {
            #inside
            // In a block of its own, so that the user's function does not see its names.
            {
                #before_main
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

/// Generates a pointer to a function that runs before `main`. Miri knows the section without a priority alone.
fn before_main(statement: &TokenStream) -> TokenStream {
    quote! {
        #[used]
        #[cfg_attr(
            all(any(target_os = "linux", target_os = "android"), not(miri)),
            unsafe(link_section = ".init_array.00190")
        )]
        #[cfg_attr(target_vendor = "apple", unsafe(link_section = "__DATA,__mod_init_func,mod_init_funcs"))]
        #[cfg_attr(windows, unsafe(link_section = ".CRT$XCU"))]
        #[cfg_attr(
            any(
                all(miri, any(target_os = "linux", target_os = "android")),
                not(any(target_os = "linux", target_os = "android", target_vendor = "apple", windows))
            ),
            unsafe(link_section = ".init_array")
        )]
        static __CHILDPROOF_REGISTER: extern "C" fn() = {
            extern "C" fn __childproof_register() {
                #statement;
            }
            __childproof_register
        };
    }
}

/// Puts the code for a call by libtest before a body.
fn entered(private: &TokenStream, static_name: &Ident, body: &Group) -> Group {
    let enter = quote! {
        if #static_name.has_run_in_libtest() {
            return #private::passed();
        }
    };
    // In a block of its own, so that items still precede all statements. The function's inner attributes must
    // stay at the beginning of the body.
    let (inner, rest) = split_inner_attributes(body);
    let mut made = Group::new(proc_macro2::Delimiter::Brace, quote!(#inner #enter #rest));
    made.set_span(body.span());
    made
}

/// Splits `{ #![a] b }` into `#![a]` and `{ b }`.
fn split_inner_attributes(body: &Group) -> (TokenStream, TokenTree) {
    // A `$body:block` of a macro is wrapped in a group without delimiters.
    let mut block = body.clone();
    while block.delimiter() == proc_macro2::Delimiter::None {
        match block.stream().into_iter().next() {
            Some(TokenTree::Group(inner)) => block = inner,
            _ => return (TokenStream::new(), body.clone().into()),
        }
    }
    let is = |token: Option<&TokenTree>, wanted: char| matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == wanted);
    let tokens: Vec<TokenTree> = block.stream().into_iter().collect();
    let mut at = 0;
    while is(tokens.get(at), '#') && is(tokens.get(at + 1), '!') && tokens.len() > at + 2 {
        at += 3;
    }
    // The braces of the block get the macro's span, so that lints ignore them. Splitting the stream separates
    // a macro's `$body:expr`, so it is done only where needed.
    let stream = if at == 0 { block.stream() } else { tokens[at..].iter().cloned().collect() };
    let mut rest = Group::new(block.delimiter(), stream);
    rest.set_span(block.span().resolved_at(Span::call_site()));
    (tokens[..at].iter().cloned().collect(), rest.into())
}

/// Expands `childproof::policy!`.
pub(crate) fn policy(tokens: TokenStream) -> TokenStream {
    let (args, errors) = Args::parse(tokens, ArgumentsOf::Target);
    if let Some(errors) = errors {
        return errors.into_compile_error();
    }
    let (private, fields) = (&args.private, args.fields());
    let before_main = before_main(&quote! {
        #private::set_target_policy(const { &#private::Attribute { #fields ..#private::Attribute::NONE } })
    });
    quote! {
        #[cfg(test)]
        #[allow(non_camel_case_types, dead_code)]
        enum childproof_policy_stands_once_in_a_target {}
        #[cfg(test)]
        const _: () = {
            #before_main
            #private::only_at_the_root(::core::module_path!());
        };
    }
}

/// Returns the errors and the function, without what only makes sense on a test.
fn give_back(pass: Pass, errors: Error, mut function: Function) -> TokenStream {
    let errors = errors.into_compile_error();
    if !function.has(Kind::Foreign) {
        function.attributes.retain(|attribute| !matches!(kind(attribute), Kind::Ignore | Kind::ShouldPanic));
    }
    function.attributes.retain(|attribute| kind(attribute) != Kind::Ours);
    // The check for the test must not report a second error.
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

/// The name of a test's static.
fn static_name(name: &Ident, span: Span) -> Ident {
    at(&Ident::new(&format!("__CHILDPROOF_{}", name.unraw()), name.span()), span)
}

/// Gives a name a span in the source, with the context of the macro.
fn at(name: &Ident, span: Span) -> Ident {
    // The context includes its edition, and edition 2024 reserves a name that earlier ones allow.
    let context = if name == "gen" { name.span() } else { Span::call_site() };
    let mut placed = name.clone();
    placed.set_span(span.resolved_at(context));
    placed
}
