//! The conditions of `[target.'cfg(..)']` tables in cargo's configuration.

/// Whether a condition such as `cfg(all(unix, target_arch = "x86_64"))` holds, by the lines that `rustc --print cfg`
/// writes. `None` if it cannot be read.
pub(super) fn holds(condition: &str, facts: &[String]) -> Option<bool> {
    let mut rest = condition.trim().strip_prefix("cfg(")?.strip_suffix(')')?;
    let value = expression(&mut rest, facts)?;
    rest.trim().is_empty().then_some(value)
}

fn expression(rest: &mut &str, facts: &[String]) -> Option<bool> {
    let word = word(rest)?;
    if let Some(after) = rest.trim_start().strip_prefix('(') {
        *rest = after;
        let mut values = Vec::new();
        loop {
            if let Some(after) = rest.trim_start().strip_prefix(')') {
                *rest = after;
                break;
            }
            values.push(expression(rest, facts)?);
            let after = rest.trim_start();
            *rest = after.strip_prefix(',').unwrap_or(after);
        }
        return match (word, &values[..]) {
            ("all", values) => Some(values.iter().all(|value| *value)),
            ("any", values) => Some(values.contains(&true)),
            ("not", [value]) => Some(!value),
            _ => None,
        };
    }
    if let Some(after) = rest.trim_start().strip_prefix('=') {
        let (value, after) = after.trim_start().strip_prefix('"')?.split_once('"')?;
        *rest = after;
        return Some(facts.contains(&format!("{word}=\"{value}\"")));
    }
    match word {
        "true" => Some(true),
        "false" => Some(false),
        _ => Some(facts.iter().any(|fact| fact == word)),
    }
}

fn word<'a>(rest: &mut &'a str) -> Option<&'a str> {
    let text = rest.trim_start();
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let (word, after) = text.split_at(end);
    *rest = after;
    (!word.is_empty()).then_some(word)
}

#[cfg(test)]
mod tests {
    use super::holds;

    #[test]
    fn conditions_are_those_of_cargo() {
        let facts: Vec<String> =
            ["unix", "target_os=\"linux\"", "target_arch=\"x86_64\""].map(str::to_owned).to_vec();
        for (condition, value) in [
            ("cfg(unix)", Some(true)),
            ("cfg(windows)", Some(false)),
            ("cfg(all(unix, target_arch = \"x86_64\"))", Some(true)),
            ("cfg(any(windows,not( unix )))", Some(false)),
            ("cfg(all())", Some(true)),
            ("cfg(any())", Some(false)),
            ("cfg(not(target_os = \"macos\"))", Some(true)),
            ("cfg(false)", Some(false)),
            ("cfg(not(unix, windows))", None),
            ("cfg(unix", None),
            ("cfg(unix) x", None),
            ("x86_64-unknown-linux-gnu", None),
        ] {
            assert_eq!(holds(condition, &facts), value, "{condition}");
        }
    }
}
