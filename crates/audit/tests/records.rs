//! The published form of records: schema and table follow from the code, and every kind is in them.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::every_kind;
use model::Body;
use nanoclaw_audit::entry::{Uids, encode};
use nanoclaw_audit::{catalogue, schema};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

/// What stands in the repository; `NANOCLAW_BLESS=1` takes over what is made now.
fn published(file: &str, made: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(file);
    if std::env::var_os("NANOCLAW_BLESS").is_some() {
        return std::fs::write(path, made).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == made, "{file} is not what the code makes; look, then NANOCLAW_BLESS=1");
}

#[test]
fn schema_and_table_are_those_of_the_code() {
    published(schema::FILE, &schema::text());
    published(catalogue::FILE, &catalogue::page());
}

/// The kinds that the type reads, in its own words.
fn kinds_of_the_type() -> BTreeSet<String> {
    let error = serde_json::from_value::<Body>(json!({"kind": "no such kind"})).unwrap_err();
    let error = error.to_string();
    let (_, list) = error.split_once("expected one of ").unwrap();
    list.split(", ").map(|kind| kind.trim_matches(['`', ' ']).to_owned()).collect()
}

#[test]
fn no_kind_is_without_a_row_an_example_and_a_form() {
    let all = kinds_of_the_type();
    assert!(all.len() > 35 && all.contains("egress_refused"), "{all:?}");
    let examples: Vec<String> = catalogue::examples().iter().map(|b| b.kind().to_owned()).collect();
    assert_eq!(examples.iter().cloned().collect::<BTreeSet<_>>(), all);
    assert_eq!(examples.len(), all.len(), "one example each");
    let tested: BTreeSet<String> = every_kind().iter().map(|b| b.kind().to_owned()).collect();
    assert_eq!(tested, all, "tests/common/mod.rs knows every kind too");
    assert!(catalogue::examples().iter().all(|body| !catalogue::meaning(body).is_empty()));
    let page = catalogue::page();
    for kind in &all {
        assert!(page.contains(&format!("| `{kind}` |")), "{kind}");
    }
}

/// As much of a JSON schema as ours has; an unknown word fails.
fn check(form: &Value, value: &Value, at: &str) -> Result<(), String> {
    for (word, want) in form.as_object().unwrap() {
        let good = match word.as_str() {
            "$schema" | "$id" | "title" | "description" => true,
            "type" => {
                let sorts = want.as_array().cloned().unwrap_or_else(|| vec![want.clone()]);
                sorts.iter().any(|sort| is(sort.as_str().unwrap(), value))
            }
            "const" => want == value,
            "enum" => want.as_array().unwrap().contains(value),
            "minimum" => value.as_u64().is_none_or(|n| n >= want.as_u64().unwrap()),
            "maximum" => value.as_u64().is_none_or(|n| n <= want.as_u64().unwrap()),
            "minProperties" => {
                value.as_object().is_none_or(|o| o.len() as u64 >= want.as_u64().unwrap())
            }
            "pattern" => value.as_str().is_none_or(|text| matches(want.as_str().unwrap(), text)),
            "required" => value.as_object().is_none_or(|object| {
                want.as_array()
                    .unwrap()
                    .iter()
                    .all(|key| object.contains_key(key.as_str().unwrap()))
            }),
            "properties" => {
                for (key, inner) in value.as_object().into_iter().flatten() {
                    if let Some(form) = want.get(key) {
                        check(form, inner, &format!("{at}/{key}"))?;
                    }
                }
                true
            }
            "additionalProperties" => {
                for (key, inner) in value.as_object().into_iter().flatten() {
                    let known = form.get("properties").and_then(|p| p.get(key)).is_some();
                    match want {
                        _ if known => {}
                        Value::Bool(free) if *free => {}
                        Value::Bool(_) => return Err(format!("{at}: {key} is not known")),
                        form => check(form, inner, &format!("{at}/{key}"))?,
                    }
                }
                true
            }
            "items" => {
                for (n, inner) in value.as_array().into_iter().flatten().enumerate() {
                    check(want, inner, &format!("{at}/{n}"))?;
                }
                true
            }
            "oneOf" => {
                let all = want.as_array().unwrap();
                let fits: Vec<_> = all.iter().map(|form| check(form, value, at)).collect();
                match fits.iter().filter(|fit| fit.is_ok()).count() {
                    1 => true,
                    0 => {
                        let kind = &value["unmapped"]["kind"];
                        let own = all.iter().position(|form| form["title"] == *kind);
                        return own.map_or(Err(format!("{at}: no such kind")), |n| fits[n].clone());
                    }
                    n => return Err(format!("{at}: {n} forms fit")),
                }
            }
            other => panic!("a word of JSON schema that this test does not know: {other}"),
        };
        if !good {
            return Err(format!("{at}: {value} is against {word} {want}"));
        }
    }
    Ok(())
}

fn is(sort: &str, value: &Value) -> bool {
    match sort {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("no sort of value: {other}"),
    }
}

/// The patterns of the schema are these four.
fn matches(pattern: &str, text: &str) -> bool {
    let hex = |text: &str| text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if pattern.contains("{64}") {
        return text.len() == 64 && hex(text);
    }
    if pattern.contains("-7[0-9a-f]") {
        let parts: Vec<&str> = text.split('-').collect();
        let lengths: Vec<usize> = parts.iter().map(|p| p.len()).collect();
        return lengths == [8, 4, 4, 4, 12]
            && parts.iter().all(|p| hex(p))
            && parts[2].starts_with('7');
    }
    assert!(pattern.contains("{0,62}"), "{pattern}");
    model::SessionId::parse(text).is_ok()
}

#[test]
fn every_kind_is_of_the_schema_with_and_without_what_may_be_missing() {
    let form = schema::schema();
    for body in every_kind().into_iter().chain(catalogue::examples()) {
        for full in [true, false] {
            let mut record = common::record(body.clone());
            // What the tests' own records have of digests is none; the form of a digest is another
            // test's affair.
            if !full {
                (record.session, record.agent, record.turn) = (None, None, None);
            }
            let entry = encode(&record, &Uids::new(3).next(record.time_ms)).unwrap();
            let value: Value = serde_json::from_slice(entry.bytes()).unwrap();
            check(&form, &value, "").unwrap_or_else(|e| panic!("{}: {e}", body.kind()));
        }
    }
}

#[test]
fn what_no_record_can_be_is_not_of_the_schema() {
    let form = schema::schema();
    for body in catalogue::examples() {
        let good = schema::example_json(&body);
        check(&form, &good, "").unwrap();
        // Another kind's name, a field more, a field less, another type.
        let mut bad = good.clone();
        bad["unmapped"]["kind"] = "no_such_kind".into();
        assert!(check(&form, &bad, "").is_err(), "{}", body.kind());
        let mut bad = good.clone();
        bad["unmapped"]["more"] = 1.into();
        assert!(check(&form, &bad, "").is_err(), "{}", body.kind());
        let mut bad = good.clone();
        bad["later"] = 1.into();
        assert!(check(&form, &bad, "").is_err(), "{}", body.kind());
        let fields: Vec<String> = good["unmapped"].as_object().unwrap().keys().cloned().collect();
        for field in fields {
            let mut bad = good.clone();
            bad["unmapped"][&field] = json!({"another": ["type"]});
            assert!(check(&form, &bad, "").is_err(), "{} {field}", body.kind());
            // Read by the type without it? Then it need not be there, or is null where it is not.
            let mut less = good.clone();
            less["unmapped"].as_object_mut().unwrap().remove(&field);
            let read = nanoclaw_audit::entry::decode(&serde_json::to_vec(&less).unwrap()).is_ok();
            if !read {
                assert!(check(&form, &less, "").is_err(), "{} without {field}", body.kind());
            }
        }
    }
}
