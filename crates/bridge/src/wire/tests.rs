use std::collections::BTreeMap;

use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use super::*;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Sample {
    name: String,
    count: u8,
    signed: i32,
    flag: bool,
    list: Vec<u32>,
    map: BTreeMap<String, String>,
    inner: Inner,
    maybe: Option<Inner>,
    quoted: JsonString<Inner>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Inner {
    value: u32,
}

impl Body for Sample {}

fn read(text: &str) -> Result<Sample, WireError> {
    decode(text.as_bytes())
}

fn written(sample: &Sample) -> String {
    tree(sample, Side::Guest).unwrap().to_text()
}

#[test]
fn names_match_without_case_and_the_last_of_two_wins() {
    let sample = read(r#"{"NAME":"a","name":"b","Count":1,"cOUNT":2,"unknown":[{}]}"#).unwrap();
    assert_eq!((sample.name.as_str(), sample.count), ("b", 2));
}

#[test]
fn null_is_the_zero_value_wherever_it_stands() {
    let nulls = r#"{"Name":null,"Count":null,"List":null,"Map":null,"Inner":null,"Maybe":null}"#;
    assert_eq!(read(nulls).unwrap(), Sample::default());
    assert_eq!(read("null").unwrap(), Sample::default());
    assert_eq!(read(r#"{"List":[1,null]}"#).unwrap().list, [1, 0]);
    // It does not undo a value that came before it.
    assert_eq!(read(r#"{"Count":3,"Count":null}"#).unwrap().count, 3);
}

#[test]
fn only_whole_numbers_in_range_are_integers() {
    for wrong in ["1.0", "1e0", "256", "-1", "\"1\"", "true", "[]", "{}"] {
        read(&format!(r#"{{"Count":{wrong}}}"#)).expect_err(wrong);
    }
    assert_eq!(read(r#"{"Signed":-2147483648}"#).unwrap().signed, i32::MIN);
}

#[test]
fn a_list_is_no_object_and_text_after_the_document_is_an_error() {
    for wrong in ["[]", r#"{"Inner":[1]}"#, "{}{}", "", "{", r#"{"Count":1,}"#, "\u{feff}{}"] {
        read(wrong).expect_err(wrong);
    }
    assert!(read(" \t\r\n{} \n").is_ok());
}

#[test]
fn broken_text_is_read_as_replacement_characters() {
    let name = |text: &[u8]| decode::<Sample>(text).unwrap().name;
    assert_eq!(name(br#"{"Name":"a\ud800b"}"#), "a\u{fffd}b");
    assert_eq!(name(br#"{"Name":"\udc00\ud83d\ude00\ud83d"}"#), "\u{fffd}\u{1f600}\u{fffd}");
    assert_eq!(name(br#"{"Name":"\\ud800"}"#), r"\ud800");
    assert_eq!(name(b"{\"Name\":\"a\xff\xf0\x9f\x98b\"}"), "a\u{fffd}\u{fffd}\u{fffd}\u{fffd}b");
}

#[test]
fn a_document_nested_without_end_is_an_error() {
    let deep = "[".repeat(100_000);
    assert!(matches!(Json::parse(deep.as_bytes()), Err(WireError::Syntax(_))));
}

#[test]
fn zero_fields_are_left_out_but_structs_and_what_is_in_lists_and_maps_are_not() {
    assert_eq!(written(&Sample::default()), r#"{"Inner":{}}"#);
    let sample = Sample {
        list: vec![0],
        map: BTreeMap::from([("b".to_owned(), String::new()), ("a".to_owned(), "1".to_owned())]),
        maybe: Some(Inner::default()),
        quoted: Inner::default().into(),
        ..Sample::default()
    };
    let text = r#"{"List":[0],"Map":{"a":"1","b":""},"Inner":{},"Maybe":{},"Quoted":"{}"}"#;
    assert_eq!(written(&sample), text);
}

#[test]
fn text_is_escaped_as_go_does_and_a_document_in_a_string_twice() {
    let text = |name: &str| Json::Text(name.to_owned());
    let escaped = text("<a>&\u{2028}\u{2029}\u{8}\u{c}\n\r\t\u{1}\"\\/\u{7f}é");
    let once = r#""\u003ca\u003e\u0026\u2028\u2029\u0008\u000c\n\r\t\u0001\"\\/"#;
    assert_eq!(escaped.to_text(), format!("{once}\u{7f}é\""));
    let quoted = Json::Quoted(Box::new(Json::Object(vec![("a".to_owned(), text("<\""))])));
    assert_eq!(quoted.to_text(), r#""{\"a\":\"\\u003c\\\"\"}""#);
}

#[test]
fn a_string_without_a_document_holds_nothing() {
    for nothing in ["{}", r#"{"Quoted":null}"#, r#"{"Quoted":""}"#, r#"{"Quoted":"null"}"#] {
        let quoted = read(nothing).unwrap().quoted;
        assert_eq!(quoted.require("Quoted"), Err(EmptyString("Quoted")), "{nothing}");
    }
    assert_eq!(read(r#"{"Quoted":"{\"Value\":7}"}"#).unwrap().quoted, Inner { value: 7 }.into());
    for wrong in [r#"{"Quoted":"{"}"#, r#"{"Quoted":{}}"#, r#"{"Quoted":"[]"}"#] {
        read(wrong).expect_err(wrong);
    }
}

#[test]
fn a_document_of_another_schema_passes_through_whole_and_in_order() {
    let text = r#"{"z":0,"a":"","list":[],"null":null,"map":{},"deep":{"b":false,"a":[1,-2,0.5]}}"#;
    let json = Json::parse(text.as_bytes()).unwrap();
    assert_eq!(json.to_text(), text);
    assert_eq!(Json::of(&json).unwrap(), json);
    let value: serde_json::Value = json.decode().unwrap();
    assert_eq!(value["deep"]["a"][1], -2);
    assert_eq!(Json::of(&Inner::default()).unwrap().to_text(), r#"{"Value":0}"#);
}

#[test]
fn numbers_with_a_fraction_are_written_as_go_does() {
    for (number, text) in
        [(1.0, "1"), (0.1, "0.1"), (1e21, "1e+21"), (1.5e-7, "1.5e-7"), (123_456.0, "123456")]
    {
        assert_eq!(Json::of(&number).unwrap().to_text(), text);
    }
}

fn documents() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::Bool),
        any::<i64>().prop_map(|number| Json::Number(number.into())),
        any::<String>().prop_map(Json::Text),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Json::Array),
            proptest::collection::vec((any::<String>(), inner), 0..6).prop_map(Json::Object),
        ]
    })
}

proptest! {
    #[test]
    fn any_document_comes_back_from_its_text(document in documents()) {
        prop_assert_eq!(&Json::parse(document.to_text().as_bytes()).unwrap(), &document);
        let quoted = Json::Quoted(Box::new(document.clone()));
        let Json::Text(inner) = Json::parse(quoted.to_text().as_bytes()).unwrap() else {
            return Err(TestCaseError::fail("a quoted document is text"));
        };
        prop_assert_eq!(inner, document.to_text());
    }

    #[test]
    fn any_bytes_are_a_document_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(json) = Json::parse(&bytes) {
            prop_assert!(Json::parse(json.to_text().as_bytes()).is_ok());
        }
        let _ = decode::<Sample>(&bytes).is_ok();
    }

    #[test]
    fn any_text_in_a_name_comes_back(name: String, count: u8, list: Vec<u32>) {
        let sample = Sample { name, count, list, ..Sample::default() };
        prop_assert_eq!(read(&written(&sample)).unwrap(), sample);
    }
}
