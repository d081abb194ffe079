//! The fake model server as a program: prints its base URL, then serves until its standard input
//! ends or it is killed.
//!
//! `fake-model [--port N] [--require-key K] [--fail STATUS --first N [--retry-after S]]
//! [--delay-ms N] [--chunk BYTES] [--garbage] [--drop] [--log FILE]`

use nanoclaw_testkit::{FakeModel, Options};
use std::io::{Error, ErrorKind, Read, Write};
use std::str::FromStr;
use std::time::Duration;

fn main() -> std::io::Result<()> {
    let server = FakeModel::start(options(std::env::args().skip(1))?)?;
    let mut out = std::io::stdout();
    writeln!(out, "{}", server.base_url())?;
    out.flush()?;
    let mut rest = [0; 1024];
    while std::io::stdin().read(&mut rest)? > 0 {}
    Ok(())
}

fn options(mut args: impl Iterator<Item = String>) -> std::io::Result<Options> {
    let mut options = Options::default();
    while let Some(flag) = args.next() {
        let mut value = || {
            let why = format!("{flag} needs a value");
            args.next().ok_or_else(|| Error::new(ErrorKind::InvalidInput, why))
        };
        match flag.as_str() {
            "--port" => options.port = number(&value()?)?,
            "--require-key" => options.require_key = Some(value()?),
            "--fail" => options.fail_status = Some(number(&value()?)?),
            "--first" => options.fail_first = number(&value()?)?,
            "--retry-after" => options.retry_after = Some(number(&value()?)?),
            "--delay-ms" => options.delay = Duration::from_millis(number(&value()?)?),
            "--chunk" => options.chunk = Some(number(&value()?)?),
            "--garbage" => options.garbage = true,
            "--drop" => options.drop_mid_stream = true,
            "--log" => options.log = Some(value()?.into()),
            other => {
                let why = format!("unknown option {other:?}");
                return Err(Error::new(ErrorKind::InvalidInput, why));
            }
        }
    }
    Ok(options)
}

fn number<T: FromStr>(text: &str) -> std::io::Result<T> {
    let why = format!("{text:?} is not a number that fits");
    text.parse().map_err(|_| Error::new(ErrorKind::InvalidInput, why))
}
