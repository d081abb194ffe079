//! Licences of what is linked: each an expression of the list in `deny.toml`, the one place for it.
//!
//! Expressions are SPDX (spdx.github.io/spdx-spec, annex D): `AND` binds more than `OR`, `WITH`
//! adds an exception; the old `MIT/Apache-2.0` means `OR`.

use std::fs;

use crate::deps::Linked;
use crate::repo::{Failure, Outcome, Repo, at};

/// The licences that `deny.toml` allows.
pub(crate) fn allowed(repo: &Repo) -> Outcome<Vec<String>> {
    let path = repo.root.join("deny.toml");
    let text = fs::read_to_string(&path).map_err(at(&path))?;
    let list = allow_list(&text);
    if list.is_empty() {
        return Err(Failure::new("deny.toml: [licenses] has no `allow = [` with one name a line"));
    }
    Ok(list)
}

fn allow_list(text: &str) -> Vec<String> {
    let section = text.lines().skip_while(|line| line.trim() != "[licenses]");
    let list = section.skip_while(|line| line.trim() != "allow = [").skip(1);
    list.take_while(|line| line.trim() != "]")
        .filter_map(|line| line.split('"').nth(1))
        .map(str::to_owned)
        .collect()
}

/// A line for each crate whose licence the list does not satisfy.
pub(crate) fn not_allowed(linked: &[Linked], allowed: &[String]) -> Vec<String> {
    linked
        .iter()
        .filter(|one| !is_satisfied(&one.licence, allowed))
        .map(|one| {
            let licence = if one.licence.is_empty() { "none named" } else { &one.licence };
            format!("{} {}: licence not allowed by deny.toml: {licence}", one.name, one.version)
        })
        .collect()
}

/// Whether the allowed licences are enough for an expression; nonsense is never satisfied.
fn is_satisfied(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut parser = Parser { words: &words, allowed };
    let result = parser.any();
    result == Some(true) && parser.words.is_empty()
}

struct Parser<'a> {
    words: &'a [&'a str],
    allowed: &'a [String],
}

impl<'a> Parser<'a> {
    fn next_is(&mut self, word: &str) -> bool {
        let found = self.words.first() == Some(&word);
        if found {
            self.words = &self.words[1..];
        }
        found
    }

    fn any(&mut self) -> Option<bool> {
        let mut result = self.every()?;
        while self.next_is("OR") {
            result |= self.every()?;
        }
        Some(result)
    }

    fn every(&mut self) -> Option<bool> {
        let mut result = self.one()?;
        while self.next_is("AND") {
            result &= self.one()?;
        }
        Some(result)
    }

    fn one(&mut self) -> Option<bool> {
        if self.next_is("(") {
            let inside = self.any()?;
            return self.next_is(")").then_some(inside);
        }
        let mut name = self.word()?.to_owned();
        if self.next_is("WITH") {
            name = format!("{name} WITH {}", self.word()?);
        }
        Some(self.allowed.contains(&name))
    }

    fn word(&mut self) -> Option<&'a str> {
        let (word, rest) = self.words.split_first()?;
        self.words = rest;
        (!["AND", "OR", "WITH", "(", ")"].contains(word)).then_some(*word)
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn expressions_are_judged_as_spdx_says() {
        let allowed = ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned).to_vec();
        for good in [
            "MIT",
            "GPL-3.0-only OR MIT",
            "MIT/Apache-2.0",
            "ISC AND (GPL-2.0-only OR MIT)",
            "Apache-2.0 WITH LLVM-exception AND MIT",
        ] {
            assert!(is_satisfied(good, &allowed), "{good}");
        }
        for bad in [
            "",
            "Apache-2.0",
            "MIT AND GPL-3.0-only",
            "(MIT",
            "MIT OR",
            "MIT MIT",
            "OR",
            "MIT WITH",
        ] {
            assert!(!is_satisfied(bad, &allowed), "{bad}");
        }
    }

    #[test]
    fn the_list_is_read_from_its_section_only() {
        let text = "[bans]\nallow = [\n \"x\",\n]\n[licenses]\nallow = [\n    \"MIT\", # ours\n]\n";
        assert_eq!(allow_list(text), ["MIT"]);
        let linked = vec![Linked {
            name: "a".to_owned(),
            version: "1.0.0".to_owned(),
            licence: String::new(),
        }];
        assert!(not_allowed(&linked, &allow_list(text))[0].contains("none named"));
    }
}
