//! Reads JSON into types that derive `Deserialize`, with a fraction of the code that serde_json would make of them: for
//! each struct that is a second reader, which takes it as a list of values, and a chain of comparisons for the names of
//! its members. Here a struct is an object and nothing else, and a name is looked up in the list of names, by one
//! function for all of them. What reads text stays serde_json.

use std::fmt;

use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess,
    Unexpected, VariantAccess, Visitor,
};

/// Wraps a thing of serde's: a deserializer, or what it is given or hands out.
pub(super) struct Typed<T>(pub T);

macro_rules! as_it_is {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
            self.0.$method(visitor)
        }
    )*};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Typed<D> {
    type Error = D::Error;

    as_it_is! {
        deserialize_any deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_u8
        deserialize_u16 deserialize_u32 deserialize_u64 deserialize_f32 deserialize_f64 deserialize_char deserialize_str
        deserialize_string deserialize_bytes deserialize_byte_buf deserialize_unit deserialize_identifier
        deserialize_ignored_any
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_option(Typed(visitor))
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_unit_struct(name, visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_newtype_struct(name, visitor)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_seq(Typed(visitor))
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_tuple(len, Typed(visitor))
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_tuple_struct(name, len, Typed(visitor))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_map(Typed(visitor))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_map(Object { names, visitor })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let at = self.0.deserialize_str(NameIn(names))?;
        let at = at.map_err(|name| de::Error::unknown_variant(&name, names))?;
        visitor.visit_enum(Variant(at.into_deserializer()))
    }
}

/// For what holds values: each of them is read in this way, too.
impl<'de, V: Visitor<'de>> Visitor<'de> for Typed<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }

    fn visit_unit<E: de::Error>(self) -> Result<V::Value, E> {
        self.0.visit_unit()
    }

    fn visit_none<E: de::Error>(self) -> Result<V::Value, E> {
        self.0.visit_none()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        self.0.visit_some(Typed(deserializer))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<V::Value, A::Error> {
        self.0.visit_seq(Typed(seq))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        self.0.visit_map(Typed(map))
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Typed<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        self.0.deserialize(Typed(deserializer))
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Typed<A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        self.0.next_element_seed(Typed(seed))
    }
}

/// A map's keys are left to serde_json, which reads names only.
impl<'de, A: MapAccess<'de>> MapAccess<'de> for Typed<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, A::Error> {
        self.0.next_key_seed(seed)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.0.next_value_seed(Typed(seed))
    }
}

/// Reads a struct with members of these names.
struct Object<V> {
    names: &'static [&'static str],
    visitor: V,
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Object<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.visitor.expecting(f)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        let names = self.names;
        let last = None;
        self.visitor.visit_map(Members { names, map, last })
    }
}

/// The members of a struct: their names are given by number.
struct Members<A> {
    names: &'static [&'static str],
    map: A,
    /// The member whose value comes next, if it is one of them.
    last: Option<u32>,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Members<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, A::Error> {
        let Some(name) = self.map.next_key_seed(NameIn(self.names))? else {
            return Ok(None);
        };
        self.last = name.as_ref().ok().copied();
        // A number that is not known is refused by a struct that refuses names; the refusal is to tell the name.
        let at = name.as_ref().map_or(u64::MAX, |at| u64::from(*at));
        match (
            seed.deserialize(IntoDeserializer::<A::Error>::into_deserializer(at)),
            name,
        ) {
            (Err(_), Err(name)) => Err(de::Error::unknown_field(&name, self.names)),
            (known, _) => known.map(Some),
        }
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        let name = self.last.and_then(|at| self.names.get(at as usize));
        self.map.next_value_seed(Typed(seed)).map_err(|e| {
            let what = e.to_string();
            match name {
                // The place at its end is taken for what it is.
                Some(name) if !what.starts_with(name) => {
                    de::Error::custom(format_args!("{name}: {what}"))
                }
                _ => e,
            }
        })
    }
}

/// Members that had another name once, and how they are called now: what was written under the former name stays readable.
const FORMER: [(&str, &str); 7] = [
    ("factory", "factory_manifest"),
    ("leaves", "schema_after"),
    ("protect", "method"),
    ("saved", "exchanged"),
    ("saved_at", "exchanged_at"),
    ("slowest_bytes_per_s", "min_bytes_per_s"),
    ("users", "services"),
];

/// Reads a name, and gives its place among these, or the name if it is not among them.
struct NameIn(&'static [&'static str]);

impl<'de> DeserializeSeed<'de> for NameIn {
    type Value = Result<u32, String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for NameIn {
    type Value = Result<u32, String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<Self::Value, E> {
        let place = |name: &str| (0..).zip(self.0).find(|(_, known)| **known == name);
        let older = || {
            let (_, now) = FORMER.iter().find(|(former, _)| *former == name)?;
            place(now)
        };
        let at = place(name).or_else(older);
        Ok(at.map(|(at, _)| at).ok_or_else(|| name.to_owned()))
    }
}

/// A variant without fields, by its number.
struct Variant<E>(de::value::U32Deserializer<E>);

impl<'de, E: de::Error> EnumAccess<'de> for Variant<E> {
    type Error = E;
    type Variant = Typed<std::marker::PhantomData<E>>;

    fn variant_seed<V: DeserializeSeed<'de>>(
        self,
        seed: V,
    ) -> Result<(V::Value, Self::Variant), E> {
        Ok((seed.deserialize(self.0)?, Typed(std::marker::PhantomData)))
    }
}

/// What has fields is written as an object with a member that tells its kind, and read as a struct.
impl<'de, E: de::Error> VariantAccess<'de> for Typed<std::marker::PhantomData<E>> {
    type Error = E;

    fn unit_variant(self) -> Result<(), E> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _: T) -> Result<T::Value, E> {
        Err(E::invalid_type(Unexpected::UnitVariant, &"a name"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, E> {
        Err(E::invalid_type(Unexpected::UnitVariant, &visitor))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, E> {
        Err(E::invalid_type(Unexpected::UnitVariant, &visitor))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use crate::json::parse_str;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Outer {
        first: u64,
        #[serde(default)]
        list: Vec<Inner>,
        map: Option<BTreeMap<String, Inner>>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        #[serde(rename = "type")]
        kind: Kind,
        limit: Option<u32>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Kind {
        One,
        Two,
    }

    #[test]
    fn a_former_name_is_read_where_the_present_one_is_expected() {
        #[derive(Debug, PartialEq, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Renamed {
            method: u64,
        }
        #[derive(Debug, PartialEq, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Kept {
            protect: u64,
        }
        for text in [r#"{"method":1}"#, r#"{"protect":1}"#] {
            assert_eq!(parse_str::<Renamed>(text), Ok(Renamed { method: 1 }));
        }
        let kept = parse_str::<Kept>(r#"{"protect":1}"#);
        assert_eq!(kept, Ok(Kept { protect: 1 }));
        let both = parse_str::<Renamed>(r#"{"protect":1,"method":2}"#).unwrap_err();
        assert!(both.contains("duplicate"), "{both}");
        let wrong = parse_str::<Renamed>(r#"{"users":1}"#).unwrap_err();
        assert!(wrong.contains("users"), "{wrong}");
    }

    #[test]
    fn members_come_in_any_order_and_the_unknown_are_passed_over() {
        let text = r#"{"map":{"a":{"limit":7,"type":"two"}},"new":[{"first":1}],"fir\u0073t":18446744073709551615,
            "list":[{"type":"one"},{"type":"two","limit":null}]}"#;
        let inner = |kind, limit| Inner { kind, limit };
        let read = Outer {
            first: u64::MAX,
            list: vec![inner(Kind::One, None), inner(Kind::Two, None)],
            map: Some(BTreeMap::from([("a".into(), inner(Kind::Two, Some(7)))])),
        };
        assert_eq!(parse_str::<Outer>(text).unwrap(), read);
        let alone = parse_str::<Outer>(r#"{"first":1,"map":null}"#).unwrap();
        assert_eq!((alone.list.len(), alone.map), (0, None));
    }

    /// Each refusal says what is wrong, and where.
    #[test]
    fn what_does_not_fit_is_refused_with_its_place() {
        for (text, why) in [
            (
                "[1]",
                "invalid type: sequence, expected struct Outer at line 1 column 0",
            ),
            (
                r#"{"first":1,"list":[["one"]]}"#,
                "list: invalid type: sequence, expected struct Inner at line 1 column 19",
            ),
            ("{}", "missing field `first` at line 1 column 2"),
            (
                r#"{"first":1,"first":1}"#,
                "duplicate field `first` at line 1 column 18",
            ),
            (
                r#"{"first":-1}"#,
                "first: invalid value: integer `-1`, expected u64 at line 1 column 11",
            ),
            (
                r#"{"first":1,"list":[{"type":"one","tpye":1}]}"#,
                "list: unknown field `tpye`, expected `type` or `limit` at line 1 column 39",
            ),
            (
                r#"{"first":1,"list":[{"type":"three"}]}"#,
                "list: type: unknown variant `three`, expected `one` or `two` at line 1 column 35",
            ),
            (
                r#"{"first":1,"list":[{"type":1}]}"#,
                "list: type: invalid type: integer `1`, expected a name at line 1 column 28",
            ),
            (
                r#"{"first":1} x"#,
                "trailing characters at line 1 column 13",
            ),
            (
                r#"{"first":1"#,
                "EOF while parsing an object at line 1 column 10",
            ),
        ] {
            assert_eq!(parse_str::<Outer>(text).unwrap_err(), why, "{text}");
        }
    }
}
