//! When a certificate ends: the one field of our own certificate that is read back, without a
//! certificate library. Bounded, never panics.

/// UTCTime and GeneralizedTime (X.690), SEQUENCE, and the explicit version of a certificate.
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xA0;

/// `notAfter` of a certificate in DER, Unix seconds (RFC 5280 §4.1.2.5). `None` when it cannot be
/// read, or lies before 1970.
pub(super) fn not_after(certificate: &[u8]) -> Option<u64> {
    let (_, certificate, _) = value(certificate, Some(SEQUENCE))?;
    let (_, mut rest, _) = value(certificate, Some(SEQUENCE))?;
    if rest.first() == Some(&VERSION) {
        (_, _, rest) = value(rest, None)?;
    }
    // serialNumber, signature, issuer
    for _ in 0..3 {
        (_, _, rest) = value(rest, None)?;
    }
    let (_, validity, _) = value(rest, Some(SEQUENCE))?;
    let (_, _, after) = value(validity, None)?;
    let (tag, text, _) = value(after, None)?;
    match tag {
        // RFC 5280: years from 50 on are of the last century.
        UTC_TIME => {
            let year = number(text.get(..2)?)?;
            seconds(if year >= 50 { 1900 + year } else { 2000 + year }, text.get(2..)?)
        }
        GENERALIZED_TIME => seconds(number(text.get(..4)?)?, text.get(4..)?),
        _ => None,
    }
}

/// Takes one element: its tag, its content, and what follows it.
fn value(der: &[u8], wanted: Option<u8>) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    if wanted.is_some_and(|wanted| wanted != tag) {
        return None;
    }
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7F => (usize::from(first), rest),
        0x81..=0x83 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7F))?;
            (bytes.iter().fold(0, |n, &b| n << 8 | usize::from(b)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

fn number(digits: &[u8]) -> Option<u64> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// `MMDDHHMMSSZ` of a year, as Unix seconds (days by Hinnant's `days_from_civil`).
fn seconds(year: u64, text: &[u8]) -> Option<u64> {
    let (&[a, b, c, d, e, f, g, h, i, j], b"Z") = text.split_first_chunk()? else { return None };
    let [month, day] = [number(&[a, b])?, number(&[c, d])?];
    let [hour, minute, second] = [number(&[e, f])?, number(&[g, h])?, number(&[i, j])?];
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || year < 1970 {
        return None;
    }
    let shifted = if month > 2 { year } else { year - 1 };
    let (era, of_era) = (shifted / 400, shifted % 400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year;
    // 719468 days from 0000-03-01 to 1970-01-01.
    Some(days.checked_sub(719_468)? * 86_400 + hour * 3_600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_the_clock_counts_them() {
        assert_eq!(seconds(1970, b"0101000000Z"), Some(0));
        assert_eq!(seconds(2000, b"0229235959Z"), Some(951_868_799));
        assert_eq!(seconds(2036, b"1231000000Z"), Some(2_114_294_400));
        for bad in [&b"0101000000"[..], b"0001000000Z", b"13010000 0Z", b"", b"0101000000ZZ"] {
            assert_eq!(seconds(2000, bad), None, "{bad:?}");
        }
    }

    #[test]
    fn cut_and_changed_certificates_are_read_or_refused() {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(vec!["a.example".into()]).expect("valid");
        for (year, end) in [(2036, 2_082_758_400), (2060, 2_840_140_800)] {
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
            let certificate = params.self_signed(&key).expect("signed");
            assert_eq!(not_after(certificate.der()), Some(end));
            for at in 0..certificate.der().len() {
                let _ = not_after(&certificate.der()[..at]);
                let mut changed = certificate.der().to_vec();
                for bit in 0..8 {
                    changed[at] ^= 1 << bit;
                    let _ = not_after(&changed);
                }
            }
        }
    }
}
