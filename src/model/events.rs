//! `CloudEvents` 1.0 and places in the stream of events.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize, de::IgnoredAny};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{
    ids,
    json::{self, Fingerprint, Form, Json, Members, Readable, canonical},
    time,
};

/// The `source` of events that name none.
pub const DEFAULT_SOURCE: &str = "agentarea-api";

/// The maximum length of `id`, `source`, `type` and `subject`.
pub const MAX_ATTRIBUTE: usize = 1024;

/// A `CloudEvents` 1.0 event: its document in the JSON format, which is stored, sent and streamed
/// unchanged, and the attributes that determine its delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Unique within the source.
    pub id: String,
    /// The origin of the event, a URI reference.
    pub source: String,
    /// The type of the event, such as `task.created`.
    pub kind: String,
    /// The thing that the event is about; events of one subject keep their order.
    pub subject: Option<String>,
    is_traced: bool,
    document: Arc<str>,
}

impl Event {
    /// Creates an event of our own.
    #[must_use]
    pub fn new(kind: impl Into<String>, subject: Option<String>, data: Option<&Json>) -> Self {
        Self::with_id(ids::new_id(), kind, subject, data)
    }

    /// Creates an event of our own with this id.
    ///
    /// # Panics
    /// Never: every part of an event is representable in JSON.
    #[must_use]
    pub fn with_id(
        id: String,
        kind: impl Into<String>,
        subject: Option<String>,
        data: Option<&Json>,
    ) -> Self {
        let (source, kind) = (DEFAULT_SOURCE.to_owned(), kind.into());
        let document = Document {
            specversion: "1.0",
            id: &id,
            source: &source,
            kind: &kind,
            subject: subject.as_deref(),
            time: time::now(),
            datacontenttype: data.map(|_| "application/json"),
            data,
        };
        let document = serde_json::to_string(&document).expect("strings and JSON serialise");
        Self { id, source, kind, subject, is_traced: false, document: document.into() }
    }

    /// Reads an event in the JSON format from a client's document.
    ///
    /// # Errors
    /// Names the attribute and the rule of the specification that it breaks.
    pub fn from_client(document: &Json) -> Result<Self, String> {
        let members = Members::of(document.text()).map_err(|error| error.to_string())?;
        check_members(&members)?;
        let event = Self::stored(document.text().into()).map_err(|error| error.to_string())?;
        event.check()?;
        Ok(event)
    }

    /// Reads a stored event.
    ///
    /// # Errors
    /// When the document is not an event that every reader can read.
    pub fn stored(document: Arc<str>) -> serde_json::Result<Self> {
        let Attributes { id, source, kind, subject, traceparent, .. } =
            serde_json::from_str(&document)?;
        let is_traced = traceparent.is_some();
        Ok(Self { id, source, kind, subject, is_traced, document })
    }

    /// The event in the JSON format.
    #[must_use]
    pub fn document(&self) -> &Arc<str> {
        &self.document
    }

    /// Adds the event to the trace, unless it names one itself.
    #[must_use]
    pub fn within_trace(mut self, traceparent: &str) -> Self {
        if let (false, Some(open)) = (self.is_traced, self.document.strip_suffix('}')) {
            let value = Value::from(traceparent);
            self.document = format!("{open},\"traceparent\":{value}}}").into();
            self.is_traced = true;
        }
        self
    }

    /// The fingerprint by which a repetition of the event is recognised.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        // A document is an object.
        let members = Members::of(&self.document).ok();
        Fingerprint::new(|form, out| {
            if let Some(members) = &members {
                write_members(members, form, out);
            }
        })
    }

    /// The slot in which it is delivered: that of its subject, or an arbitrary one if it has none.
    #[must_use]
    pub fn slot(&self) -> i32 {
        slot(&self.source, self.subject.as_deref().unwrap_or(&self.id))
    }

    /// True for an event of this service about a change of status of an execution. Events of clients
    /// with such a source and id are refused.
    #[must_use]
    pub fn is_lifecycle(&self) -> bool {
        self.source == DEFAULT_SOURCE && self.id.contains(':')
    }

    /// Checks the attributes that determine its delivery against the rules of the specification.
    ///
    /// # Errors
    /// Names the attribute and the rule that it breaks.
    pub fn check(&self) -> Result<(), String> {
        check_text("id", &self.id)?;
        check_text("source", &self.source)?;
        check_text("type", &self.kind)?;
        self.subject.as_ref().map_or(Ok(()), |subject| check_text("subject", subject))
    }
}

/// The slot of the events of a source about a subject. Events of one slot keep their order.
/// Processes of different versions must agree on it, so it does not come from the standard library's
/// hash.
#[must_use]
pub fn slot(source: &str, subject: &str) -> i32 {
    let digest = Sha256::new().chain_update(source).chain_update([0]).chain_update(subject);
    i32::from(digest.finalize()[0])
}

/// An event of our own in the JSON format.
#[derive(Serialize)]
struct Document<'a> {
    specversion: &'static str,
    id: &'a str,
    source: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<&'a str>,
    time: time::Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    datacontenttype: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a Json>,
}

/// The attributes that are read from a stored event. Its data is read only to prove that others can
/// read it.
#[derive(Deserialize)]
struct Attributes {
    id: String,
    source: String,
    #[serde(rename = "type")]
    kind: String,
    subject: Option<String>,
    traceparent: Option<IgnoredAny>,
    #[serde(default, rename = "data")]
    _data: Readable,
}

/// The attributes that are text, and whether each is required.
const TEXTS: [(&str, bool); 9] = [
    ("specversion", true),
    ("id", true),
    ("source", true),
    ("type", true),
    ("subject", false),
    ("time", false),
    ("datacontenttype", false),
    ("dataschema", false),
    ("data_base64", false),
];

/// The order of the attributes in a fingerprint; extensions follow by name.
const ORDER: [&str; 10] = [
    "specversion",
    "id",
    "source",
    "type",
    "subject",
    "time",
    "datacontenttype",
    "dataschema",
    DATA,
    "data_base64",
];

const DATA: &str = "data";

/// Appends the significant content of an event in one form, however its client wrote it.
fn write_members(members: &Members<'_>, form: Form, out: &mut Vec<u8>) {
    let counts = |name: &str, value: &str| {
        // Data may be `null`, which earlier releases did not keep; any other `null` attribute is
        // unset.
        value != "null" || (name == DATA && form == Form::Exact)
    };
    let mut extensions: Vec<&str> =
        members.iter().map(|(name, _)| name).filter(|name| !ORDER.contains(name)).collect();
    extensions.sort_unstable();
    let all = ORDER.into_iter().chain(extensions);
    let mut before = b'{';
    for (name, value) in all.filter_map(|name| Some((name, members.get(name)?))) {
        if counts(name, value) {
            out.push(before);
            before = b',';
            out.extend_from_slice(Value::from(name).to_string().as_bytes());
            out.push(b':');
            canonical(value, form, out);
        }
    }
    out.push(b'}');
}

/// Checks the attributes that are not read after acceptance, and names the one that is wrong.
fn check_members(members: &Members<'_>) -> Result<(), String> {
    if let Some(name) = members.repeated() {
        return Err(format!("`{name}` is there twice"));
    }
    TEXTS.iter().try_for_each(|&(name, required)| check_type(name, required, members.get(name)))?;
    let text = |name| members.get(name).and_then(|text| serde_json::from_str::<String>(text).ok());
    if let Some(version) = text("specversion").filter(|version| version != "1.0") {
        return Err(format!("`specversion` must be \"1.0\", not {version:?}"));
    }
    if let Some(time) = text("time").filter(|time| time.parse::<time::Timestamp>().is_err()) {
        return Err(format!("`time` must be an RFC 3339 date-time, not {time:?}"));
    }
    let data = members.get(DATA).filter(|data| *data != "null");
    if data.is_some() && text("data_base64").is_some() {
        return Err("`data` and `data_base64` exclude each other".to_owned());
    }
    if let Some(data) = data {
        json::check_depth(data.as_bytes()).map_err(|problem| format!("`data` {problem}"))?;
    }
    let mut extensions = members.iter().filter(|(name, _)| !ORDER.contains(name));
    extensions.try_for_each(|(name, value)| check_extension(name, value.get()))
}

fn check_type(name: &str, required: bool, value: Option<&str>) -> Result<(), String> {
    match value {
        None if required => Err(format!("`{name}` is missing")),
        Some("null") if !required => Ok(()),
        Some(other) if !other.starts_with('"') => {
            let found =
                serde_json::from_str(other).map_or_else(|_| other.to_owned(), |v| json::found(&v));
            Err(format!("`{name}`: expected text, found {found}"))
        }
        None | Some(_) => Ok(()),
    }
}

fn check_text(name: &str, value: &str) -> Result<(), String> {
    if value.is_empty() || value.len() > MAX_ATTRIBUTE || value.chars().any(char::is_control) {
        return Err(format!(
            "`{name}` must have 1 to {MAX_ATTRIBUTE} bytes and no control characters"
        ));
    }
    Ok(())
}

fn check_extension(name: &str, value: &str) -> Result<(), String> {
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
        return Err(format!("`{name}`: an attribute's name has only a-z and 0-9"));
    }
    if value.starts_with(['{', '[', 'n']) {
        return Err(format!("`{name}`: an extension attribute is a string, a boolean or a number"));
    }
    Ok(())
}

/// A place in the stream of events: the id of a stored event, in the order of the stream.
///
/// Redis assigns ids (milliseconds, number) to its stream entries. The memory broker generates ids
/// of the same form, so that a client resumes from either in the same way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The milliseconds since the epoch.
    pub millis: u64,
    /// The number within the millisecond.
    pub number: u64,
}

impl Position {
    /// The place before every event.
    pub const START: Self = Self { millis: 0, number: 0 };

    /// The place just before this one.
    #[must_use]
    pub fn before(self) -> Self {
        match self {
            Self { millis, number: number @ 1.. } => Self { millis, number: number - 1 },
            Self { millis: 0, .. } => Self::START,
            Self { millis, .. } => Self { millis: millis - 1, number: u64::MAX },
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.millis, self.number)
    }
}

impl FromStr for Position {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits =
            |part: &str| part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse().ok());
        text.split_once('-')
            .and_then(|(millis, number)| {
                Some(Self { millis: digits(millis)??, number: digits(number)?? })
            })
            .ok_or_else(|| format!("{text:?} is not the id of an event, such as 1767225600000-0"))
    }
}

/// An event in the broker. The JSON is shared, because one event goes to many readers.
#[derive(Clone, Debug)]
pub struct StoredEvent {
    /// Its place.
    pub position: Position,
    /// Its JSON, as it was published.
    pub json: Arc<str>,
}

/// The part of the stream that can still be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The place after which every event can still be read; events at or before it may be gone.
    pub complete_after: Position,
    /// The place of the newest event, or the place after which the next event comes.
    pub newest: Position,
}

impl Range {
    /// True when a reader that has seen everything up to `position` can continue without loss.
    #[must_use]
    pub fn can_resume_after(&self, position: Position) -> bool {
        (self.complete_after..=self.newest).contains(&position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// An event as the previous release wrote and hashed it.
    #[derive(Serialize, Deserialize)]
    struct EarlierEvent {
        specversion: String,
        id: String,
        source: String,
        #[serde(rename = "type")]
        kind: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        subject: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        time: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        datacontenttype: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        dataschema: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        data: Option<Value>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        data_base64: Option<String>,
        #[serde(flatten)]
        extensions: std::collections::BTreeMap<String, Value>,
    }

    fn earlier_hash(text: &str) -> String {
        let value: Value = serde_json::from_str(text).unwrap();
        let event: EarlierEvent = serde_json::from_value(value).unwrap();
        hex::encode(Sha256::digest(serde_json::to_string(&event).unwrap()))
    }

    fn from_client(text: &str) -> Result<Event, String> {
        Event::from_client(&Json::read(text.as_bytes()).unwrap())
    }

    const DIGITS: &str = r#"{ "type": "a.b", "specversion": "1.0", "id": "1", "source": "/x",
        "data": {"z": 1.00, "a": 123456789012345678901234567890, "u": "\u00e9"}, "own": 1e2 }"#;

    #[test]
    fn what_a_client_sent_stays_as_it_is() {
        let event = from_client(DIGITS).unwrap();
        assert_eq!(&**event.document(), DIGITS);
        assert_eq!((&*event.id, &*event.source, &*event.kind), ("1", "/x", "a.b"));
        let null =
            from_client(r#"{"specversion":"1.0","id":"1","source":"s","type":"t","data":null}"#);
        let null = null.unwrap().within_trace("00-1-2-01");
        assert!(null.document().ends_with(r#","data":null,"traceparent":"00-1-2-01"}"#));
        assert_eq!(null.clone().within_trace("00-3-4-01"), null, "its own trace stays");
        assert_eq!(Event::stored(Arc::clone(null.document())).unwrap(), null);
    }

    #[test]
    fn an_event_of_ours_is_what_it_says() {
        let data = Json::from(json!({"n": 1}));
        let event = Event::new("a.b", Some("s".to_owned()), Some(&data));
        assert_eq!(event, from_client(event.document()).unwrap());
        let about = |id: &str| Event::with_id(id.to_owned(), "a.b", None, None);
        assert!(about("1:running").is_lifecycle() && !about("1").is_lifecycle());
        let document: Value = serde_json::from_str(event.document()).unwrap();
        assert_eq!(document["data"], json!({"n": 1}));
        assert_eq!(document["datacontenttype"], "application/json");
    }

    #[test]
    fn a_repetition_is_recognised_however_it_is_laid_out_and_by_the_release_before() {
        let usual = r#"{"specversion":"1.0","id":"1","source":"/x","type":"a","subject":null,
            "data":{"b":[1,-2.5,"\u00e9"],"a":{}},"time":"2026-01-01T00:00:00Z","own":true,"b":2}"#;
        let fingerprint = |text: &str| from_client(text).unwrap().fingerprint();
        let value: Value = serde_json::from_str(usual).unwrap();
        assert_eq!(fingerprint(&format!("{value:#}")), fingerprint(usual));
        assert_eq!(fingerprint(usual).as_str(), earlier_hash(usual), "it understands ours as well");
        let null = r#"{"specversion":"1.0","id":"1","source":"/x","type":"a","data":null}"#;
        for unusual in [DIGITS, null] {
            assert_ne!(fingerprint(unusual).as_str(), earlier_hash(unusual));
            assert!(fingerprint(unusual).matches(&earlier_hash(unusual)), "{unusual}");
        }
        let absent = null.replace(r#","data":null"#, "");
        assert!(!fingerprint(&absent).matches(fingerprint(null).as_str()));
        let other = DIGITS.replace("1.00", "1.01");
        assert!(!fingerprint(&other).matches(fingerprint(DIGITS).as_str()));
    }

    #[test]
    fn an_event_that_breaks_the_specification_is_refused() {
        let good = json!({"specversion": "1.0", "id": "1", "source": "/x", "type": "a"});
        assert!(from_client(&good.to_string()).is_ok());
        for (key, value) in [
            ("specversion", json!("0.3")),
            ("id", json!("")),
            ("type", json!("a\nb")),
            ("subject", json!(1)),
            ("time", json!("yesterday")),
            ("BadName", json!("x")),
            ("nested", json!({})),
            ("nothing", json!(null)),
        ] {
            let mut bad = good.clone();
            bad[key] = value;
            assert!(from_client(&bad.to_string()).is_err(), "{key} was accepted");
        }
        let twice = good.to_string().replace('}', r#","id":"2"}"#);
        assert_eq!(from_client(&twice), Err("`id` is there twice".to_owned()));
        let both = good.to_string().replace('}', r#","data":1,"data_base64":"AA=="}"#);
        assert!(from_client(&both).is_err());
    }

    #[test]
    fn positions_are_ordered_as_numbers_and_survive_their_text() {
        let small: Position = "9-10".parse().unwrap();
        let large: Position = "10-9".parse().unwrap();
        assert!(small < large);
        assert_eq!(large.to_string(), "10-9");
        for bad in ["", "1", "a-1", "1-", "-1", "1-+2", "99999999999999999999-0"] {
            assert!(bad.parse::<Position>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn the_place_before_another_is_its_neighbour() {
        let place = |text: &str| text.parse::<Position>().unwrap();
        assert_eq!(place("5-7").before(), place("5-6"));
        assert_eq!(place("5-0").before(), Position { millis: 4, number: u64::MAX });
        assert_eq!(Position::START.before(), Position::START);
    }
}
