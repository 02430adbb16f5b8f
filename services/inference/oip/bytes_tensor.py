"""BYTES in raw form: each element is its length, 4 bytes little-endian, and then its bytes."""

import struct
from collections.abc import Iterable

from services.chassis.faults import InvalidField

_LENGTH = struct.Struct("<I")


def decode_bytes(field: str, data: bytes, count: int) -> list[bytes]:
    """The tensor's elements. Raises InvalidField unless `data` is exactly `count` of them."""
    if count * _LENGTH.size > len(data):  # before the loop: a lie about the shape must cost nothing
        raise InvalidField(field, f"has {len(data)} bytes, too few for the {count} elements of its shape")
    elements, offset = [], 0
    for index in range(count):
        start = offset + _LENGTH.size
        if start > len(data):
            raise InvalidField(field, f"ends before element {index} of {count}")
        offset = start + _LENGTH.unpack_from(data, start - _LENGTH.size)[0]
        if offset > len(data):
            raise InvalidField(field, f"element {index} has {len(data) - start} bytes, its length says {offset - start}")
        elements.append(data[start:offset])
    if offset != len(data):
        raise InvalidField(field, f"has {len(data) - offset} bytes past its {count} elements")
    return elements


def encode_bytes(elements: Iterable[bytes]) -> bytes:
    """The raw form of a tensor's elements in row-major order."""
    return b"".join(part for element in elements for part in (_LENGTH.pack(len(element)), element))


def decode_texts(field: str, elements: Iterable[bytes]) -> list[str]:
    """UTF-8 texts. Raises InvalidField, with the element's index."""
    texts = []
    for index, element in enumerate(elements):
        try:
            texts.append(element.decode())
        except UnicodeDecodeError as error:
            raise InvalidField(f"{field}[{index}]", f"is not UTF-8: {error.reason} at byte {error.start}") from None
    return texts
