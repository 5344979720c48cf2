//! The variables of an existing deployment, as GoDoxy's programs look for them.

/// The value of `NAME`: of `GODOXY_NAME`, `GOPROXY_NAME` or `NAME`, the first that is set and not
/// empty, which is GoDoxy's order. Quotes around the whole value are left out: shells take them
/// away from the lines of an environment file, other readers of such files do not.
pub fn variable(name: &str) -> Option<String> {
    find(name, |full| std::env::var(full).ok())
}

fn find(name: &str, env: impl Fn(&str) -> Option<String>) -> Option<String> {
    ["GODOXY_", "GOPROXY_", ""].iter().find_map(|prefix| {
        env(&format!("{prefix}{name}")).filter(|value| !value.is_empty()).map(unquoted)
    })
}

fn unquoted(value: String) -> String {
    let between = |quote| value.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
    match between('"').or_else(|| between('\'')) {
        Some(inner) => inner.to_owned(),
        None => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_wins_unless_its_variable_is_empty() {
        let env = |full: &str| match full {
            "GODOXY_A" => Some("first".to_owned()),
            "GOPROXY_A" | "A" => Some("later".to_owned()),
            "GODOXY_B" => Some(String::new()),
            "GOPROXY_B" => Some("second".to_owned()),
            "C" => Some("bare".to_owned()),
            _ => None,
        };
        assert_eq!(find("A", env).as_deref(), Some("first"));
        assert_eq!(find("B", env).as_deref(), Some("second"));
        assert_eq!(find("C", env).as_deref(), Some("bare"));
        assert_eq!(find("D", env), None);
    }

    #[test]
    fn quotes_around_a_value_are_not_part_of_it() {
        for (value, meant) in
            [("\"8890\"", "8890"), ("'podman'", "podman"), ("\"half", "\"half"), ("\"", "\"")]
        {
            assert_eq!(unquoted(value.to_owned()), meant);
        }
    }
}
