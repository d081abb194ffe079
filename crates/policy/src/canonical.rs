//! Canonical JSON (RFC 8785) for the values policies are made of: objects, arrays, strings,
//! booleans and integers below 2^53. Floats do not occur.

use serde_json::Value;

/// Writes `value` with sorted keys and no white space.
pub(crate) fn to_bytes(value: &Value) -> Vec<u8> {
    let mut out = String::new();
    write(value, &mut out);
    out.into_bytes()
}

fn write(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            // RFC 8785 §3.2.3 sorts by UTF-16 code units.
            keys.sort_by_cached_key(|k| k.encode_utf16().collect::<Vec<_>>());
            out.push('{');
            for (i, key) in keys.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write(&Value::String(key.clone()), out);
                out.push(':');
                write(&map[key], out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write(item, out);
            }
            out.push(']');
        }
        // serde_json escapes strings as RFC 8785 §3.2.2.2 asks and writes integers plainly.
        other => out.push_str(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn keys_are_sorted_at_every_depth() {
        let value = serde_json::json!({"b": [{"z": 1, "a": "é\n"}], "a": true});
        assert_eq!(super::to_bytes(&value), r#"{"a":true,"b":[{"a":"é\n","z":1}]}"#.as_bytes());
    }
}
