//! First stage: TOML text → a tree whose every key and value knows its place; typed access to
//! it, with unknown and not-yet-enforced keys refused before anything is read.

use crate::error::{Place, PolicyError, Problem, quote};
use crate::keys::{Keys, SCHEMA_VERSION};
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

type Result<T> = std::result::Result<T, PolicyError>;

/// Largest file read, bytes: a hundred times what a person writes, little enough to parse at once.
pub(crate) const FILE_BYTES_MAX: usize = 256 * 1024;

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct At<T> {
    pub(crate) place: Place,
    pub(crate) value: T,
}

/// A text and its name.
#[derive(Clone, Copy)]
pub(crate) struct Source<'t> {
    pub(crate) file: &'t str,
    pub(crate) text: &'t str,
}

impl<'t> Source<'t> {
    /// The place of a byte range's first character.
    pub(crate) fn place(&self, span: &Range<usize>) -> Place {
        let mut start = span.start.min(self.text.len());
        while !self.text.is_char_boundary(start) {
            start -= 1;
        }
        let before = &self.text[..start];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Place::File {
            file: self.file.to_owned(),
            line: before.bytes().filter(|b| *b == b'\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }

    /// Parses the text. Errors carry the parser's message and place, never its excerpt of the
    /// text, which may hold a secret.
    pub(crate) fn parse(&self) -> Result<Spanned<DeTable<'t>>> {
        if self.text.len() > FILE_BYTES_MAX {
            return Err(Problem::Unreadable {
                why: format!("the text has {} bytes, more than 256 KiB", self.text.len()),
                remedy: "shorten it".into(),
            }
            .at(&Place::Whole(self.file.to_owned())));
        }
        DeTable::parse(self.text).map_err(|e| {
            let place = self.place(&e.span().unwrap_or(0..0));
            Problem::Syntax { message: e.message().trim().replace('\n', ", ") }.at(&place)
        })
    }
}

/// One table being read.
pub(crate) struct Section<'a, 't> {
    source: &'a Source<'t>,
    table: &'a DeTable<'t>,
    /// How errors call it: `[sandbox]`, `the top level`.
    pub(crate) name: String,
    /// Where it begins.
    pub(crate) place: Place,
}

impl<'a, 't> Section<'a, 't> {
    /// The top table: checks `schema` first, so that a newer file is not called misspelt.
    pub(crate) fn top(
        source: &'a Source<'t>,
        root: &'a Spanned<DeTable<'t>>,
        keys: &Keys,
    ) -> Result<Self> {
        let place = Place::File { file: source.file.to_owned(), line: 1, column: 1 };
        let name = "the top level".to_owned();
        let section = Self { source, table: root.get_ref(), name, place };
        let schema = section.integer("schema", "schema = 1")?;
        let schema = schema.ok_or_else(|| Problem::SchemaMissing.at(&section.place))?;
        if schema.value != SCHEMA_VERSION {
            return Err(Problem::SchemaVersion { found: schema.value }.at(&schema.place));
        }
        section.check_keys(keys)?;
        Ok(section)
    }

    fn check_keys(&self, keys: &Keys) -> Result<()> {
        let mut all: Vec<_> = self.table.keys().collect();
        all.sort_by_key(|key| key.span().start);
        for key in all {
            let text: &str = key.get_ref();
            if keys.known.contains(&text) {
                continue;
            }
            let problem = if keys.later.contains(&text) {
                Problem::NotEnforced { what: self.describe(text) }
            } else {
                Problem::UnknownKey {
                    key: quote(text),
                    section: self.name.clone(),
                    nearest: keys.nearest(text),
                }
            };
            return Err(problem.at(&self.source.place(&key.span())));
        }
        Ok(())
    }

    /// A key and its table, for errors.
    fn describe(&self, key: &str) -> String {
        if self.name.starts_with('[') {
            format!("{} in {}", quote(key), self.name)
        } else {
            quote(key)
        }
    }

    fn find<T>(
        &self,
        key: &str,
        wanted: &'static str,
        example: &str,
        convert: impl FnOnce(&'a DeValue<'t>) -> Option<T>,
    ) -> Result<Option<At<T>>> {
        let Some(value) = self.table.get(key) else { return Ok(None) };
        let place = self.source.place(&value.span());
        match convert(value.get_ref()) {
            Some(value) => Ok(Some(At { place, value })),
            None => Err(Problem::WrongType {
                key: self.describe(key),
                wanted,
                found: kind(value.get_ref()),
                example: example.to_owned(),
            }
            .at(&place)),
        }
    }

    pub(crate) fn string(&self, key: &str, example: &str) -> Result<Option<At<&'a str>>> {
        self.find(key, "a string", example, |v| v.as_str())
    }

    pub(crate) fn integer(&self, key: &str, example: &str) -> Result<Option<At<i64>>> {
        self.find(key, "an integer of 64 bits", example, as_i64)
    }

    /// An integer or a float.
    pub(crate) fn number(&self, key: &str, example: &str) -> Result<Option<At<f64>>> {
        self.find(key, "a number", example, |v| match v {
            DeValue::Float(float) => float.as_str().parse().ok(),
            // Beyond 2^53 an integer loses its last digits; every use is range-checked far below.
            #[allow(clippy::cast_precision_loss)]
            other => as_i64(other).map(|i| i as f64),
        })
    }

    pub(crate) fn boolean(&self, key: &str, example: &str) -> Result<Option<At<bool>>> {
        self.find(key, "true or false", example, DeValue::as_bool)
    }

    /// An integer in a range.
    pub(crate) fn integer_in(
        &self,
        key: &'static str,
        example: &str,
        range: std::ops::RangeInclusive<i64>,
    ) -> Result<Option<At<u64>>> {
        let Some(found) = self.integer(key, example)? else { return Ok(None) };
        let problem = || {
            let why = format!("is {}, outside {} to {}", found.value, range.start(), range.end());
            Problem::bad(key, why, format!("write e.g. `{example}`"))
        };
        match u64::try_from(found.value) {
            Ok(value) if range.contains(&found.value) => Ok(Some(At { place: found.place, value })),
            _ => Err(problem().at(&found.place)),
        }
    }

    /// A string turned into a value by `convert`, whose problem is put at the string's place.
    pub(crate) fn parsed<T>(
        &self,
        key: &'static str,
        example: &str,
        convert: impl FnOnce(&str) -> std::result::Result<T, Problem>,
    ) -> Result<Option<At<T>>> {
        let Some(text) = self.string(key, example)? else { return Ok(None) };
        let value = convert(text.value).map_err(|p| p.at(&text.place))?;
        Ok(Some(At { place: text.place, value }))
    }

    /// An array of strings.
    pub(crate) fn strings(&self, key: &str, example: &str) -> Result<Option<At<Vec<At<String>>>>> {
        let Some(array) = self.find(key, "an array of strings", example, DeValue::as_array)? else {
            return Ok(None);
        };
        let mut all = Vec::new();
        for item in array.value {
            let place = self.source.place(&item.span());
            let Some(text) = item.get_ref().as_str() else {
                return Err(Problem::WrongType {
                    key: format!("each item of {}", self.describe(key)),
                    wanted: "a string",
                    found: kind(item.get_ref()),
                    example: example.to_owned(),
                }
                .at(&place));
            };
            all.push(At { place, value: text.to_owned() });
        }
        Ok(Some(At { place: array.place, value: all }))
    }

    /// Where the value of `key` stands, if there is one.
    pub(crate) fn place_of(&self, key: &str) -> Option<Place> {
        self.table.get(key).map(|value| self.source.place(&value.span()))
    }

    /// Whether the value of `key` is an array.
    pub(crate) fn is_array(&self, key: &str) -> bool {
        self.table.get(key).is_some_and(|v| v.get_ref().is_array())
    }

    /// Whether the value of `key` is a table.
    pub(crate) fn is_table(&self, key: &str) -> bool {
        self.table.get(key).is_some_and(|v| v.get_ref().is_table())
    }

    /// A sub-table whose keys are checked.
    pub(crate) fn section(&self, key: &'static str, keys: &Keys) -> Result<Option<Self>> {
        let example = format!("[{key}]");
        let Some(found) = self.find(key, "a table", &example, DeValue::as_table)? else {
            return Ok(None);
        };
        let section =
            Self { source: self.source, table: found.value, name: example, place: found.place };
        section.check_keys(keys)?;
        Ok(Some(section))
    }

    /// The tables of `[key.NAME]`, in the order of the file, each with its name.
    pub(crate) fn named(&self, key: &'static str, keys: &Keys) -> Result<Vec<(At<String>, Self)>> {
        let example = format!("[{key}.NAME]");
        let Some(found) = self.find(key, "a table", &example, DeValue::as_table)? else {
            return Ok(Vec::new());
        };
        let mut names: Vec<_> = found.value.iter().collect();
        names.sort_by_key(|(name, _)| name.span().start);
        let mut all = Vec::new();
        for (name, value) in names {
            let place = self.source.place(&name.span());
            let Some(table) = value.get_ref().as_table() else {
                return Err(Problem::WrongType {
                    key: format!("{} in [{key}]", quote(name.get_ref())),
                    wanted: "a table",
                    found: kind(value.get_ref()),
                    example,
                }
                .at(&place));
            };
            let label = format!("[{key}.{}]", name.get_ref().escape_debug());
            let section = Self { source: self.source, table, name: label, place: place.clone() };
            section.check_keys(keys)?;
            all.push((At { place, value: name.get_ref().to_string() }, section));
        }
        Ok(all)
    }

    /// The tables of `[[key]]`.
    pub(crate) fn list(&self, key: &'static str, keys: &Keys) -> Result<Vec<Self>> {
        let example = format!("[[{key}]]");
        let wanted = "an array of tables";
        let Some(found) = self.find(key, wanted, &example, DeValue::as_array)? else {
            return Ok(Vec::new());
        };
        let mut all = Vec::new();
        for item in found.value {
            let place = self.source.place(&item.span());
            let Some(table) = item.get_ref().as_table() else {
                let (key, found) = (quote(key), kind(item.get_ref()));
                return Err(Problem::WrongType { key, wanted, found, example }.at(&place));
            };
            let section = Self { source: self.source, table, name: example.clone(), place };
            section.check_keys(keys)?;
            all.push(section);
        }
        Ok(all)
    }

    /// A table of free names, each with a string: `[env]`.
    pub(crate) fn free_strings(&self, key: &'static str) -> Result<Vec<(At<String>, At<String>)>> {
        let example = format!("[{key}]");
        let Some(found) = self.find(key, "a table", &example, DeValue::as_table)? else {
            return Ok(Vec::new());
        };
        let mut all = Vec::new();
        for (name, value) in found.value {
            let place = self.source.place(&value.span());
            let Some(text) = value.get_ref().as_str() else {
                return Err(Problem::WrongType {
                    key: format!("{} in [{key}]", quote(name.get_ref())),
                    wanted: "a string",
                    found: kind(value.get_ref()),
                    example: "NAME = \"value\"".into(),
                }
                .at(&place));
            };
            let name_place = self.source.place(&name.span());
            all.push((
                At { place: name_place, value: name.get_ref().to_string() },
                At { place, value: text.to_owned() },
            ));
        }
        Ok(all)
    }

    /// The error for an absent key.
    pub(crate) fn missing(&self, key: &'static str, example: &'static str) -> PolicyError {
        Problem::Missing { section: self.name.clone(), key, example }.at(&self.place)
    }
}

fn as_i64(value: &DeValue<'_>) -> Option<i64> {
    let integer = value.as_integer()?;
    i64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

/// A TOML type with its article.
fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}
