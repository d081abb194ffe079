//! Character references of HTML (`&amp;`, `&#228;`, `&#xe4;`) → characters. Pure, linear.
//!
//! Source: the HTML standard, named character references: the few that pages for people use;
//! others stay as they are written.

/// Longest reference that is looked for, without `&`.
const REFERENCE_BYTES_MAX: usize = 24;

const NAMED: [(&str, char); 44] = [
    ("amp", '&'),
    ("lt", '<'),
    ("gt", '>'),
    ("quot", '"'),
    ("apos", '\''),
    ("nbsp", ' '),
    ("copy", '©'),
    ("reg", '®'),
    ("trade", '™'),
    ("hellip", '…'),
    ("mdash", '—'),
    ("ndash", '–'),
    ("lsquo", '‘'),
    ("rsquo", '’'),
    ("ldquo", '“'),
    ("rdquo", '”'),
    ("laquo", '«'),
    ("raquo", '»'),
    ("bull", '•'),
    ("middot", '·'),
    ("sect", '§'),
    ("para", '¶'),
    ("deg", '°'),
    ("plusmn", '±'),
    ("times", '×'),
    ("divide", '÷'),
    ("euro", '€'),
    ("pound", '£'),
    ("yen", '¥'),
    ("cent", '¢'),
    ("larr", '←'),
    ("rarr", '→'),
    ("uarr", '↑'),
    ("darr", '↓'),
    ("auml", 'ä'),
    ("ouml", 'ö'),
    ("uuml", 'ü'),
    ("Auml", 'Ä'),
    ("Ouml", 'Ö'),
    ("Uuml", 'Ü'),
    ("szlig", 'ß'),
    ("eacute", 'é'),
    ("egrave", 'è'),
    ("ZeroWidthSpace", '\u{200b}'),
];

/// Replaces every reference it knows.
pub(crate) fn decode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let window = &rest.as_bytes()[..rest.len().min(REFERENCE_BYTES_MAX)];
        let end = window.iter().position(|b| *b == b';');
        // The position of an ASCII byte is a boundary of characters.
        match end.and_then(|end| Some((one(&rest[..end])?, end))) {
            Some((c, end)) => {
                out.push(c);
                rest = &rest[end + 1..];
            }
            None => out.push('&'),
        }
    }
    out.push_str(rest);
    out
}

fn one(name: &str) -> Option<char> {
    let Some(number) = name.strip_prefix('#') else {
        return NAMED.iter().find(|(n, _)| *n == name).map(|(_, c)| *c);
    };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit());
    let code = match number.strip_prefix(['x', 'X']) {
        Some(hex) if digits(hex) => u32::from_str_radix(hex, 16).ok(),
        None if digits(number) => number.parse().ok(),
        _ => None,
    };
    code.and_then(char::from_u32)
}

#[cfg(test)]
mod tests {
    use super::decode;

    #[test]
    fn known_references_are_decoded_once_and_others_stay() {
        assert_eq!(decode("a &amp;lt; b &#228; &#xE4; &mdash;"), "a &lt; b ä ä —");
        for same in ["&", "&;", "&#;", "&#x;", "&#xg;", "&#-1;", "&#xd800;", "&#99999999;", "&no;"]
        {
            assert_eq!(decode(same), same);
        }
        assert_eq!(decode("&é&amp;"), "&é&");
    }
}
