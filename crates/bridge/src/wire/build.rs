//! Struct to tree.
//!
//! Two manners of one serialiser: a *message* leaves out every field that has its zero value, as
//! Go's `omitempty` does (on everything but structs); a *plain* document keeps what its type keeps.

use serde::ser::{self, Error as _, Impossible, Serialize};
use serde_json::Number;

use super::string::QUOTED;
use super::{Json, WireError};

/// The tree of a message part, zero fields left out.
pub(super) fn message<T: Serialize + ?Sized>(part: &T) -> Result<Json, WireError> {
    build(part, Manner::Message)
}

/// The tree of a document with a schema of its own.
pub(super) fn plain<T: Serialize + ?Sized>(document: &T) -> Result<Json, WireError> {
    build(document, Manner::Plain)
}

fn build<T: Serialize + ?Sized>(value: &T, manner: Manner) -> Result<Json, WireError> {
    let tree = value.serialize(Builder { manner, omit_zero: false })?;
    Ok(tree.unwrap_or_default())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    Message,
    Plain,
}

/// Builds the tree of one value; the answer is `None` for a zero value that may be left out.
#[derive(Clone, Copy)]
struct Builder {
    manner: Manner,
    omit_zero: bool,
}

type Built = Result<Option<Json>, WireError>;

impl Builder {
    fn number(self, number: impl Into<Number>) -> Built {
        let number = number.into();
        let zero = number.as_u64() == Some(0);
        self.unless(zero, || Json::Number(number))
    }

    fn unless(self, zero: bool, tree: impl FnOnce() -> Json) -> Built {
        if self.omit_zero && zero { Ok(None) } else { Ok(Some(tree())) }
    }

    /// The same manner for a value that is no field of a struct.
    fn kept(self) -> Self {
        Self { omit_zero: false, ..self }
    }

    fn value<T: Serialize + ?Sized>(self, value: &T) -> Result<Json, WireError> {
        build(value, self.manner)
    }
}

macro_rules! numbers {
    ($($method:ident: $type:ty)*) => {$(
        fn $method(self, value: $type) -> Built {
            self.number(value)
        }
    )*};
}

impl ser::Serializer for Builder {
    type Ok = Option<Json>;
    type Error = WireError;
    type SerializeSeq = Items;
    type SerializeTuple = Items;
    type SerializeTupleStruct = Items;
    type SerializeTupleVariant = Impossible<Option<Json>, WireError>;
    type SerializeMap = Entries;
    type SerializeStruct = Fields;
    type SerializeStructVariant = Fields;

    numbers! {
        serialize_i8: i8
        serialize_i16: i16
        serialize_i32: i32
        serialize_i64: i64
        serialize_u8: u8
        serialize_u16: u16
        serialize_u32: u32
        serialize_u64: u64
    }

    fn serialize_bool(self, value: bool) -> Built {
        self.unless(!value, || Json::Bool(value))
    }

    fn serialize_f32(self, value: f32) -> Built {
        self.serialize_f64(value.into())
    }

    fn serialize_f64(self, value: f64) -> Built {
        let number = Number::from_f64(value).map_or(Json::Null, Json::Number);
        self.unless(value == 0.0, || number)
    }

    fn serialize_char(self, value: char) -> Built {
        Ok(Some(Json::Text(value.into())))
    }

    fn serialize_str(self, text: &str) -> Built {
        self.unless(text.is_empty(), || Json::Text(text.to_owned()))
    }

    fn serialize_bytes(self, bytes: &[u8]) -> Built {
        let items: Vec<_> = bytes.iter().map(|byte| Json::Number((*byte).into())).collect();
        self.unless(items.is_empty(), || Json::Array(items))
    }

    fn serialize_none(self) -> Built {
        self.serialize_unit()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Built {
        value.serialize(self.kept())
    }

    fn serialize_unit(self) -> Built {
        self.unless(true, || Json::Null)
    }

    fn serialize_unit_struct(self, _name: &'static str) -> Built {
        Ok(Some(Json::EMPTY))
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Built {
        self.serialize_str(variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        value: &T,
    ) -> Built {
        if name == QUOTED {
            return Ok(Some(Json::Quoted(Box::new(self.value(value)?))));
        }
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        value: &T,
    ) -> Built {
        Ok(Some(Json::Object(vec![(variant.to_owned(), self.value(value)?)])))
    }

    fn serialize_seq(self, length: Option<usize>) -> Result<Items, WireError> {
        Ok(Items { builder: self, items: Vec::with_capacity(length.unwrap_or(0).min(1024)) })
    }

    fn serialize_tuple(self, length: usize) -> Result<Items, WireError> {
        self.serialize_seq(Some(length))
    }

    fn serialize_tuple_struct(self, _: &'static str, length: usize) -> Result<Items, WireError> {
        self.serialize_seq(Some(length))
    }

    fn serialize_tuple_variant(
        self,
        _name: &'static str,
        _index: u32,
        _variant: &'static str,
        _length: usize,
    ) -> Result<Self::SerializeTupleVariant, WireError> {
        Err(WireError::custom("the protocol has no variants that hold a tuple"))
    }

    fn serialize_map(self, _length: Option<usize>) -> Result<Entries, WireError> {
        Ok(Entries { builder: self, entries: Vec::new(), name: None })
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Fields, WireError> {
        Ok(Fields { builder: self, fields: Vec::new(), variant: None })
    }

    fn serialize_struct_variant(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        _length: usize,
    ) -> Result<Fields, WireError> {
        Ok(Fields { builder: self, fields: Vec::new(), variant: Some(variant) })
    }
}

/// A list under construction.
struct Items {
    builder: Builder,
    items: Vec<Json>,
}

impl ser::SerializeSeq for Items {
    type Ok = Option<Json>;
    type Error = WireError;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), WireError> {
        self.items.push(self.builder.value(value)?);
        Ok(())
    }

    fn end(self) -> Built {
        self.builder.unless(self.items.is_empty(), || Json::Array(self.items))
    }
}

impl ser::SerializeTuple for Items {
    type Ok = Option<Json>;
    type Error = WireError;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), WireError> {
        ser::SerializeSeq::serialize_element(self, value)
    }

    fn end(self) -> Built {
        ser::SerializeSeq::end(self)
    }
}

impl ser::SerializeTupleStruct for Items {
    type Ok = Option<Json>;
    type Error = WireError;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), WireError> {
        ser::SerializeSeq::serialize_element(self, value)
    }

    fn end(self) -> Built {
        ser::SerializeSeq::end(self)
    }
}

/// A map under construction. Its entries are data, so none is left out.
struct Entries {
    builder: Builder,
    entries: Vec<(String, Json)>,
    name: Option<String>,
}

impl ser::SerializeMap for Entries {
    type Ok = Option<Json>;
    type Error = WireError;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), WireError> {
        self.name = Some(match self.builder.value(key)? {
            Json::Text(name) => name,
            Json::Number(number) => number.to_string(),
            _ => return Err(WireError::custom("a map's key is neither text nor number")),
        });
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), WireError> {
        let name = self.name.take().ok_or_else(|| WireError::custom("a value without its key"))?;
        self.entries.push((name, self.builder.value(value)?));
        Ok(())
    }

    fn end(self) -> Built {
        self.builder.unless(self.entries.is_empty(), || Json::Object(self.entries))
    }
}

/// An object under construction.
struct Fields {
    builder: Builder,
    fields: Vec<(String, Json)>,
    variant: Option<&'static str>,
}

impl ser::SerializeStruct for Fields {
    type Ok = Option<Json>;
    type Error = WireError;

    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        name: &'static str,
        value: &T,
    ) -> Result<(), WireError> {
        let manner = self.builder.manner;
        let omit_zero = manner == Manner::Message;
        if let Some(tree) = value.serialize(Builder { manner, omit_zero })? {
            self.fields.push((name.to_owned(), tree));
        }
        Ok(())
    }

    fn end(self) -> Built {
        let object = Json::Object(self.fields);
        Ok(Some(match self.variant {
            Some(variant) => Json::Object(vec![(variant.to_owned(), object)]),
            None => object,
        }))
    }
}

impl ser::SerializeStructVariant for Fields {
    type Ok = Option<Json>;
    type Error = WireError;

    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        name: &'static str,
        value: &T,
    ) -> Result<(), WireError> {
        ser::SerializeStruct::serialize_field(self, name, value)
    }

    fn end(self) -> Built {
        ser::SerializeStruct::end(self)
    }
}
