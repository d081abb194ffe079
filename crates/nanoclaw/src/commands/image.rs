//! `image pull | import | list | remove`: the store of root file systems.

use crate::failure::{Failure, Result};
use crate::home::Home;
use crate::rootfs::failure;
use crate::{signals, ui};
use images::{Event, Image, Limits, Report, Store, Unwatched, Watch};
use model::ImageName;
use policy::format_size;
use serde_json::{Value, json};
use std::io::IsTerminal as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Stores an image from a file or folder.
pub(crate) fn import(home: &Home, path: &Path, name: Option<&str>, as_json: bool) -> Result<u8> {
    let name = name.map(image_name).transpose()?;
    let watch = Screen::watch()?;
    let stored = store(home)?.import(path, name.as_ref(), &Limits::default(), &watch);
    watch.clear();
    done(&stored.map_err(failure)?, as_json)
}

/// Fetches an image from a registry.
pub(crate) fn pull(
    home: &Home,
    reference: &str,
    name: Option<&str>,
    plain_http: bool,
    as_json: bool,
) -> Result<u8> {
    let name = name.map(image_name).transpose()?;
    let watch = Screen::watch()?;
    let limits = Limits::default();
    let stored = store(home)?.pull(reference, name.as_ref(), plain_http, &limits, &watch);
    watch.clear();
    done(&stored.map_err(failure)?, as_json)
}

/// Prints every image.
pub(crate) fn list(home: &Home, as_json: bool) -> Result<u8> {
    let images = store(home)?.list().map_err(failure)?;
    if images.is_empty() && !as_json {
        ui::note("No images. `nanoclaw image pull` and `import` store one.");
    }
    for image in &images {
        if as_json {
            ui::json_line(&value(image).to_string());
            continue;
        }
        let size = format_size(image.report.bytes);
        ui::line(format!("{}  {size}", image.name));
        ui::line(format!("  rootfs = \"image:{}\"", image.reference()));
        ui::line(format!("  from {}", ui::harmless(&image.source)));
    }
    Ok(0)
}

/// Forgets an image.
pub(crate) fn remove(home: &Home, name: &str, as_json: bool) -> Result<u8> {
    let name = image_name(name)?;
    let freed = store(home)?.remove(&name, &Unwatched).map_err(failure)?;
    if as_json {
        let value = json!({"name": name.as_str(), "removed": true, "freed_bytes": freed});
        ui::json_line(&value.to_string());
    } else {
        ui::line(format!("The image {name} is removed, and what no other one uses."));
    }
    Ok(0)
}

fn store(home: &Home) -> Result<Store> {
    Store::open(&home.images()).map_err(failure)
}

fn image_name(text: &str) -> Result<ImageName> {
    ImageName::parse(text).map_err(|e| Failure::usage(e).remedy("choose a name such as tools:1"))
}

fn value(image: &Image) -> Value {
    let Report { entries, bytes, devices, mode_bits, attributes } = image.report;
    json!({
        "name": image.name.as_str(),
        "digest": image.digest.to_string(),
        "rootfs": format!("image:{}", image.reference()),
        "source": image.source,
        "packed_bytes": image.packed_bytes,
        "bytes": bytes,
        "entries": entries,
        "left_out": {"devices": devices, "mode_bits": mode_bits, "attributes": attributes},
    })
}

fn done(image: &Image, as_json: bool) -> Result<u8> {
    if as_json {
        ui::json_line(&value(image).to_string());
        return Ok(0);
    }
    let Report { entries, bytes, devices, mode_bits, attributes } = image.report;
    let size = format_size(bytes);
    ui::line(format!("The image {} is stored: {entries} entries, {size}.", image.name));
    let mut left_out = Vec::new();
    for (count, what) in [
        (devices, "device nodes and pipes"),
        (mode_bits, "set-uid, set-gid and sticky bits"),
        (attributes, "extended attributes"),
    ] {
        if count > 0 {
            left_out.push(format!("{count} {what}"));
        }
    }
    if !left_out.is_empty() {
        ui::line(format!("Left out: {}.", left_out.join(", ")));
    }
    ui::line(
        "Everything in it belongs to the agent's own user and is read-only. For an agent file:",
    );
    ui::line(format!("  [sandbox]\n  rootfs = \"image:{}\"", image.reference()));
    Ok(0)
}

/// Tells a person on standard error how far it is; Ctrl-C stops the work and leaves nothing.
struct Screen {
    stop: Arc<AtomicBool>,
    live: bool,
}

impl Screen {
    fn watch() -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let kinds = [signals::INTERRUPT, signals::TERMINATE, signals::HANGUP];
        signals::watch(&kinds, move |_| flag.store(true, Ordering::Relaxed))?;
        Ok(Self { stop, live: std::io::stderr().is_terminal() })
    }

    fn clear(&self) {
        if self.live {
            ui::progress("");
        }
    }
}

impl Watch for Screen {
    fn tell(&self, event: Event) {
        if !self.live {
            return;
        }
        ui::progress(&match event {
            Event::Waiting => "waiting for another command that changes the images".to_owned(),
            Event::Received { what, bytes, of } => {
                format!("{what}: {} of {}", format_size(bytes), format_size(of))
            }
            Event::Unpacking { layer, of } => format!("unpacking layer {layer} of {of}"),
            Event::Sealing => "reading it once more".to_owned(),
        });
    }

    fn cancelled(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}
