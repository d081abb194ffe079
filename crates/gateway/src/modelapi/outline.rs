//! One pass over a request body: the needed fields, and what it wants of its provider. Pure.
//!
//! ```text
//! bytes ─► every object, but for what only the agent and the model read ─► fields, provider tools
//! ```
//!
//! A provider runs tools and fetches addresses itself, where no egress rule sees it; so what turns
//! that on is found wherever it stands. Every occurrence of a key counts, however it is escaped or
//! capitalised: two readers of one body may choose differently. What is not known to be harmless
//! (a tool of an unknown type) is named as unknown, and nobody can grant that.

use super::wire::Wire;
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;

/// Most keys at the top; the richest format has about forty.
const TOP_KEYS_MAX: usize = 128;
/// Longest key at the top; the longest known has about thirty characters.
const TOP_KEY_BYTES_MAX: usize = 64;
/// Longest name of a tool's type that is quoted.
const TYPE_CHARS_MAX: usize = 60;

/// The fields that are needed, as they stand.
#[derive(Default)]
pub(crate) struct Fields<'a> {
    pub(crate) model: Option<&'a RawValue>,
    pub(crate) stream: Option<&'a RawValue>,
    pub(crate) stream_options: Option<&'a RawValue>,
    pub(crate) max_tokens: Option<&'a RawValue>,
    pub(crate) max_completion_tokens: Option<&'a RawValue>,
    pub(crate) max_output_tokens: Option<&'a RawValue>,
    pub(crate) n: Option<&'a RawValue>,
    pub(crate) generation: Option<&'a RawValue>,
    /// A conversation that the provider keeps is part of the prompt.
    pub(crate) continued: bool,
    /// Names of the policy's `PROVIDER_TOOLS`.
    pub(crate) provider_tools: BTreeSet<&'static str>,
    /// A type of tool that this version does not know.
    pub(crate) unknown_tool: Option<String>,
}

impl<'a> Fields<'a> {
    /// Reads a body.
    ///
    /// # Errors
    /// When it is not one JSON object, or a key stands twice at its top.
    pub(crate) fn read(body: &'a [u8], wire: Wire) -> Result<Self, serde_json::Error> {
        let found = RefCell::new(Found::default());
        let mut from = serde_json::Deserializer::from_slice(body);
        let mut fields = Top { wire, found: &found }.deserialize(&mut from)?;
        from.end()?;
        let found = found.into_inner();
        (fields.provider_tools, fields.unknown_tool) = (found.tools, found.unknown);
        Ok(fields)
    }
}

#[derive(Default)]
struct Found {
    tools: BTreeSet<&'static str>,
    unknown: Option<String>,
}

impl Found {
    fn unknown(&mut self, kind: &str) {
        let quoted = || kind.chars().take(TYPE_CHARS_MAX).collect();
        self.unknown.get_or_insert_with(quoted);
    }
}

/// Where a value stands, as far as it matters.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Anywhere.
    Any,
    /// A list of tools, or one of them.
    Tools,
    /// What Anthropic calls a source.
    Source,
    /// An address, or an object with one under `url`.
    Address,
    /// Base64, of which some servers make an address.
    Data,
    /// Its presence alone asks for a tool.
    Wish(&'static str),
    /// The type of a tool.
    Kind,
    /// How fast, or where, it is served: most ways cost what the price says, others more.
    Service,
}

/// Where the value of a key stands; `None` for what only the agent and the model read.
fn place(wire: Wire, within: Place, key: &str) -> Option<Place> {
    let opaque = match wire {
        Wire::Anthropic => matches!(key, "input" | "input_schema" | "input_examples" | "schema"),
        Wire::OpenAi => matches!(key, "parameters" | "json_schema" | "metadata" | "arguments"),
        Wire::Responses => {
            matches!(key, "parameters" | "schema" | "input_schema" | "metadata" | "arguments")
        }
        Wire::Gemini => matches!(
            key,
            "args"
                | "response"
                | "functionDeclarations"
                | "function_declarations"
                | "responseSchema"
                | "response_schema"
                | "responseJsonSchema"
                | "response_json_schema"
        ),
    };
    if opaque {
        return None;
    }
    // Nearly every key is short and lower-case; others are compared without case.
    let lower: Cow<'_, str> = if key.bytes().any(|b| b.is_ascii_uppercase()) {
        Cow::Owned(key.to_ascii_lowercase())
    } else {
        Cow::Borrowed(key)
    };
    let key = lower.as_ref();
    if wire == Wire::Gemini {
        return Some(gemini_place(within, key));
    }
    Some(match (within, key) {
        (Place::Tools, "type") => Place::Kind,
        // OpenAI's groups of tools hold tools again.
        (_, "tools") => Place::Tools,
        (_, "source") if wire == Wire::Anthropic => Place::Source,
        (Place::Source, "url") | (Place::Address, "url") => Place::Address,
        (_, "mcp_servers" | "server_url" | "connector_id") => Place::Wish("mcp"),
        (_, "file_data") => Place::Data,
        (_, key) if key.ends_with("_url") => Place::Address,
        _ => Place::Any,
    })
}

fn gemini_place(within: Place, key: &str) -> Place {
    let plain: String = key.chars().filter(|c| *c != '_').collect();
    match (within, plain.as_str()) {
        (_, "fileuri") => Place::Wish("urls"),
        (_, "cachedcontent") => Place::Wish("stored_prompt"),
        (Place::Tools, "googlesearch" | "googlesearchretrieval" | "enterprisewebsearch") => {
            Place::Wish("web_search")
        }
        (Place::Tools, "googlemaps" | "retrieval") => Place::Wish("web_search"),
        (Place::Tools, "urlcontext") => Place::Wish("urls"),
        (Place::Tools, "codeexecution") => Place::Wish("code_execution"),
        (Place::Tools, "computeruse") => Place::Wish("computer_use"),
        (Place::Tools, "filesearch") => Place::Wish("file_search"),
        (Place::Tools, "mcpservers") => Place::Wish("mcp"),
        (Place::Tools, _) => Place::Kind,
        (_, "tools") => Place::Tools,
        _ => Place::Any,
    }
}

/// Keys of the top that turn something on by themselves.
fn top_place(wire: Wire, key: &str) -> Option<Place> {
    if matches!(key, "service_tier" | "servicetier" | "speed") {
        return Some(Place::Service);
    }
    let wish = match (wire, key) {
        (Wire::Anthropic, "container") => "code_execution",
        (
            Wire::OpenAi,
            "web_search_options" | "search_parameters" | "enable_search" | "plugins",
        ) => "web_search",
        (Wire::Responses, "background") => "background",
        (Wire::Responses, "prompt") => "stored_prompt",
        _ => return None,
    };
    Some(Place::Wish(wish))
}

/// Services at the price of the model, or below it. What stands at `auto` is the owner's setting.
fn is_plain_service(name: &str) -> bool {
    const PLAIN: [&str; 7] = ["auto", "default", "standard", "standard_only", "flex", "batch", ""];
    PLAIN.iter().any(|plain| name.eq_ignore_ascii_case(plain))
}

/// What a tool of this type is called in agent files; an empty name for one that the agent runs
/// itself, `None` for an unknown one.
fn tool_kind(wire: Wire, kind: &str) -> Option<&'static str> {
    let starts = |all: &[&str]| all.iter().any(|word| kind.starts_with(word));
    match wire {
        Wire::Anthropic => match kind {
            "custom" => Some(""),
            // What the agent runs, and what only looks through the request's own tools.
            _ if starts(&["bash_", "text_editor_", "computer_", "memory_", "tool_search_"]) => {
                Some("")
            }
            _ if starts(&["web_search_"]) => Some("web_search"),
            _ if starts(&["web_fetch_"]) => Some("urls"),
            _ if starts(&["code_execution_"]) => Some("code_execution"),
            _ if starts(&["mcp_"]) => Some("mcp"),
            _ => None,
        },
        Wire::OpenAi | Wire::Responses => match kind {
            "function" | "custom" | "local_shell" | "apply_patch" | "namespace" => Some(""),
            "file_search" => Some("file_search"),
            "code_interpreter" | "shell" => Some("code_execution"),
            "image_generation" => Some("image_generation"),
            "mcp" => Some("mcp"),
            _ if starts(&["web_search"]) => Some("web_search"),
            _ if starts(&["computer"]) => Some("computer_use"),
            _ => None,
        },
        // Gemini's tools have no type: their keys are their kinds.
        Wire::Gemini => None,
    }
}

struct Top<'f> {
    wire: Wire,
    found: &'f RefCell<Found>,
}

impl<'de> DeserializeSeed<'de> for Top<'_> {
    type Value = Fields<'de>;
    fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Top<'_> {
    type Value = Fields<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("one JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let Self { wire, found } = self;
        let (mut fields, mut seen) = (Fields::default(), BTreeSet::new());
        while let Some(Key(key)) = map.next_key()? {
            if key.len() > TOP_KEY_BYTES_MAX || seen.len() == TOP_KEYS_MAX {
                return Err(A::Error::custom("it has too many keys, or one that is too long"));
            }
            if !seen.insert(key.to_ascii_lowercase()) {
                return Err(A::Error::custom(format!("the key {key:?} stands in it twice")));
            }
            let slot = match key.as_ref() {
                "model" => &mut fields.model,
                "stream" => &mut fields.stream,
                "stream_options" => &mut fields.stream_options,
                "max_tokens" => &mut fields.max_tokens,
                "max_completion_tokens" => &mut fields.max_completion_tokens,
                "max_output_tokens" => &mut fields.max_output_tokens,
                "n" => &mut fields.n,
                "generationConfig" | "generation_config" => {
                    if fields.generation.is_some() {
                        return Err(A::Error::custom("its generationConfig stands in it twice"));
                    }
                    &mut fields.generation
                }
                "previous_response_id" | "conversation" if wire == Wire::Responses => {
                    let raw: &RawValue = map.next_value()?;
                    fields.continued |= raw.get() != "null";
                    continue;
                }
                key => {
                    let lower = key.to_ascii_lowercase();
                    match top_place(wire, &lower).or_else(|| top_any(wire, key)) {
                        None => {
                            map.next_value::<IgnoredAny>()?;
                        }
                        Some(place) => map.next_value_seed(Walk { wire, found, place })?,
                    }
                    continue;
                }
            };
            *slot = Some(map.next_value()?);
        }
        Ok(fields)
    }
}

/// At the top nothing is the model's alone but what is known to be: `input` is the prompt there.
fn top_any(wire: Wire, key: &str) -> Option<Place> {
    match (wire, key) {
        (Wire::Anthropic, "input") => Some(Place::Any),
        _ => place(wire, Place::Any, key),
    }
}

/// A key, borrowed where it can be.
struct Key<'a>(Cow<'a, str>);

impl<'de> serde::Deserialize<'de> for Key<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Key<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }
            fn visit_borrowed_str<E: serde::de::Error>(
                self,
                text: &'de str,
            ) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Borrowed(text)))
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Owned(text.to_owned())))
            }
        }
        from.deserialize_str(Text)
    }
}

/// Walks through a value for what it turns on.
#[derive(Clone, Copy)]
struct Walk<'f> {
    wire: Wire,
    found: &'f RefCell<Found>,
    place: Place,
}

impl Walk<'_> {
    fn wants(self, tool: &'static str) {
        if !tool.is_empty() {
            self.found.borrow_mut().tools.insert(tool);
        }
    }

    /// A string, as long as it is. Of a source, `{"type": "url"}` and any `url` say the same.
    fn text(self, text: &str) {
        match self.place {
            Place::Wish(tool) if !text.is_empty() => self.wants(tool),
            Place::Address if !begins(text, "data:") && !text.is_empty() => self.wants("urls"),
            Place::Data if begins(text, "http:") || begins(text, "https:") => self.wants("urls"),
            Place::Service if !is_plain_service(text) => self.wants("premium"),
            Place::Kind => match tool_kind(self.wire, text) {
                Some(tool) => self.wants(tool),
                None => self.found.borrow_mut().unknown(text),
            },
            _ => {}
        }
    }
}

fn begins(text: &str, with: &str) -> bool {
    let text = text.trim_start().as_bytes();
    text.len() >= with.len() && text[..with.len()].eq_ignore_ascii_case(with.as_bytes())
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();
    fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        if let Place::Wish(tool) = self.place
            && value
        {
            self.wants(tool);
        }
        Ok(())
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<(), E> {
        self.visit_bool(true)
    }

    fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<(), E> {
        self.visit_bool(true)
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<(), E> {
        self.visit_bool(true)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        self.text(text);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let place = if self.place == Place::Source { Place::Any } else { self.place };
        while items.next_element_seed(Self { place, ..self })?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        if let Place::Wish(tool) = self.place {
            // `{}` asks too: Gemini's tools look like that.
            self.wants(tool);
        }
        while let Some(Key(key)) = map.next_key()? {
            match place(self.wire, self.place, &key) {
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
                Some(Place::Kind) if self.wire == Wire::Gemini => {
                    self.found.borrow_mut().unknown(&key);
                    map.next_value::<IgnoredAny>()?;
                }
                Some(place) => map.next_value_seed(Self { place, ..self })?,
            }
        }
        Ok(())
    }
}
