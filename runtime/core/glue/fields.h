/* SPDX-License-Identifier: Apache-2.0 */
/* Members of a C struct by their names in Python: one table makes a dict of the struct, or fills it from an object. */
#pragma once

#include "module.h"

#include "chunk.h"

#include <stddef.h>

typedef struct {
    const char *name; /* NULL: behind the last */
    size_t offset;
    char type; /* as in Python's struct module; `s`: a name of ARM_NAME_BYTES, `x`: a digest as a text */
    enum { FIELD_VALUE, FIELD_TRUTH, FIELD_WORD, FIELD_EACH } kind; /* EACH: an array, a value for each joint */
    const char *(*word)(int32_t);
    size_t stride; /* of EACH */
} field;

#define TYPE_OF(value)                                                                                                 \
    _Generic((value), bool: '?', int8_t: 'b', uint8_t: 'B', int16_t: 'h', uint16_t: 'H', int32_t: 'i', uint32_t: 'I',  \
             int64_t: 'q', uint64_t: 'Q', float: 'f', double: 'd', char *: 's', const char *: 's', uint8_t *: 'x')
#define MEMBER(type, member) (((type *)0)->member)
#define AT(name, type, member) name, offsetof(type, member), TYPE_OF(MEMBER(type, member))
#define NAMED(name, type, member) {AT(name, type, member), FIELD_VALUE, NULL, 0}
#define FIELD(type, member) NAMED(#member, type, member)
#define TRUTH(type, member) {AT(#member, type, member), FIELD_TRUTH, NULL, 0}
#define WORD(type, member, word) {AT(#member, type, member), FIELD_WORD, word, 0}
#define EACH(name, type, member) {AT(name, type, member[0]), FIELD_EACH, NULL, sizeof MEMBER(type, member[0])}
/* A member of the structs in an array of the struct. */
#define EACH_OF(type, array, member)                                                                                   \
    {AT(#member, type, array[0].member), FIELD_EACH, NULL, sizeof MEMBER(type, array[0])}

/* The struct's fields into `dict`; 0, or -1 with a Python error set. */
int fields_put(PyObject *dict, const field *fields, const void *from, int joints);
PyObject *fields_dict(const field *fields, const void *from, int joints);
/* dict[name] = value, consuming value; 0 or -1, also where one is NULL with an error set. */
int put(PyObject *dict, const char *name, PyObject *value);
/* `n` values that lie one behind the other. */
PyObject *tuple_of(char type, const void *values, int n);
#define TUPLE_OF(array, n) tuple_of(TYPE_OF((array)[0]), array, n)

/* From the attributes of `source`, each the value of `joint` where it is an array; 0, or -1 with a Python error set. */
int fields_take(PyObject *source, const field *fields, void *to, int joint);
/* The fields that the keywords of a call name, NULL: none; TypeError for another. Arrays come whole. */
int fields_take_given(PyObject *keywords, const field *fields, void *to, int joints);
/* A sequence of `n` numbers; 0, or -1 with a Python error set. */
int take_each(PyObject *sequence, char type, void *values, int n);
#define TAKE_EACH(sequence, array, n) take_each(sequence, TYPE_OF((array)[0]), array, n)
