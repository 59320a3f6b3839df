/* SPDX-License-Identifier: Apache-2.0 */
#include "fields.h"

#include <string.h>

static size_t size_of(char type)
{
    switch (type) {
    case 's': return ARM_NAME_BYTES;
    case 'x': return DIGEST_BYTES;
    case 'q': case 'Q': case 'd': return 8;
    case 'i': case 'I': case 'f': return 4;
    case 'h': case 'H': return 2;
    default: return 1;
    }
}

static PyObject *text_of_digest(const uint8_t *digest)
{
    char text[2 * DIGEST_BYTES + 1];
    for (int i = 0; i < DIGEST_BYTES; i++)
        PyOS_snprintf(text + 2 * i, 3, "%02x", digest[i]);
    return PyUnicode_FromString(text);
}

static PyObject *value_of(char type, const void *at)
{
    switch (type) {
    case 's': return PyUnicode_DecodeUTF8(at, (Py_ssize_t)strnlen(at, ARM_NAME_BYTES), "replace");
    case 'x': return text_of_digest(at);
    case 'd': return PyFloat_FromDouble(*(const double *)at);
    case 'f': return PyFloat_FromDouble((double)*(const float *)at);
    case 'q': return PyLong_FromLongLong(*(const int64_t *)at);
    case 'Q': return PyLong_FromUnsignedLongLong(*(const uint64_t *)at);
    case 'i': return PyLong_FromLong(*(const int32_t *)at);
    case 'I': return PyLong_FromUnsignedLong(*(const uint32_t *)at);
    case 'h': return PyLong_FromLong(*(const int16_t *)at);
    case 'H': return PyLong_FromLong(*(const uint16_t *)at);
    case 'b': return PyLong_FromLong(*(const int8_t *)at);
    case 'B': return PyLong_FromLong(*(const uint8_t *)at);
    default: return PyBool_FromLong(*(const bool *)at);
    }
}

PyObject *tuple_of(char type, const void *values, int n)
{
    PyObject *tuple = PyTuple_New(n);
    for (int i = 0; tuple != NULL && i < n; i++) {
        const char *at = (const char *)values + (size_t)i * size_of(type);
        const bool nameless = type == 's' && at[0] == 0;
        PyTuple_SET_ITEM(tuple, i, nameless ? PyUnicode_FromFormat("joint_%d", i) : value_of(type, at));
    }
    return tuple;
}

static PyObject *python_of(const field *field, const char *from, int joints)
{
    if (field->kind == FIELD_EACH)
        return tuple_of(field->type, from + field->offset, joints);
    PyObject *value = value_of(field->type, from + field->offset);
    if (value == NULL || field->kind == FIELD_VALUE)
        return value;
    long number = PyLong_AsLong(value);
    Py_DECREF(value);
    return field->kind == FIELD_TRUTH ? PyBool_FromLong(number) : PyUnicode_FromString(field->word((int32_t)number));
}

int put(PyObject *dict, const char *name, PyObject *value)
{
    int failed = dict == NULL || value == NULL ? -1 : PyDict_SetItemString(dict, name, value);
    Py_XDECREF(value);
    return failed;
}

int fields_put(PyObject *dict, const field *fields, const void *from, int joints)
{
    for (; fields->name != NULL; fields++)
        if (put(dict, fields->name, python_of(fields, from, joints)) < 0)
            return -1;
    return 0;
}

PyObject *fields_dict(const field *fields, const void *from, int joints)
{
    PyObject *dict = PyDict_New();
    if (fields_put(dict, fields, from, joints) < 0)
        Py_CLEAR(dict);
    return dict;
}

static void take_digest(PyObject *value, uint8_t *digest)
{
    Py_ssize_t size;
    const char *text = PyUnicode_AsUTF8AndSize(value, &size);
    if (text == NULL)
        return;
    for (int i = 0; i < DIGEST_BYTES && size == 2 * DIGEST_BYTES; i++) {
        char pair[3] = {text[2 * i], text[2 * i + 1], 0}, *end;
        digest[i] = (uint8_t)strtoul(pair, &end, 16);
        if (end != pair + 2)
            size = -1;
    }
    if (size != 2 * DIGEST_BYTES)
        PyErr_SetString(PyExc_ValueError, "a digest is 64 hexadecimal digits");
}

static void take_name(PyObject *value, char *name)
{
    const char *text = PyUnicode_AsUTF8(value);
    if (text != NULL)
        PyOS_snprintf(name, ARM_NAME_BYTES, "%s", text); /* cut to what fits */
}

static void take_integer(PyObject *value, char type, void *at)
{
    long long number = PyLong_AsLongLong(value);
    switch (size_of(type)) {
    case 8: *(int64_t *)at = number; break;
    case 4: *(int32_t *)at = (int32_t)number; break;
    case 2: *(int16_t *)at = (int16_t)number; break;
    default: *(int8_t *)at = (int8_t)number;
    }
}

static void take(PyObject *value, char type, void *at)
{
    if (type == 'x')
        take_digest(value, at);
    else if (type == 's')
        take_name(value, at);
    else if (type == 'd')
        *(double *)at = PyFloat_AsDouble(value);
    else if (type == 'f')
        *(float *)at = (float)PyFloat_AsDouble(value);
    else if (type == '?')
        *(bool *)at = PyObject_IsTrue(value) > 0;
    else
        take_integer(value, type, at);
}

int take_each(PyObject *sequence, char type, void *values, int n)
{
    PyObject *fast = PySequence_Fast(sequence, "joint counts must be a sequence");
    if (fast == NULL)
        return -1;
    if (PySequence_Fast_GET_SIZE(fast) != n)
        PyErr_Format(PyExc_ValueError, "%zd joint counts where the arm has %d joints", PySequence_Fast_GET_SIZE(fast),
                     n);
    for (int i = 0; i < n && !PyErr_Occurred(); i++)
        take(PySequence_Fast_GET_ITEM(fast, i), type, (char *)values + (size_t)i * size_of(type));
    Py_DECREF(fast);
    return PyErr_Occurred() ? -1 : 0;
}

int fields_take(PyObject *source, const field *fields, void *to, int joint)
{
    for (; fields->name != NULL && !PyErr_Occurred(); fields++) {
        PyObject *value = PyObject_GetAttrString(source, fields->name);
        if (value != NULL)
            take(value, fields->type, (char *)to + fields->offset + (size_t)joint * fields->stride);
        Py_XDECREF(value);
    }
    return PyErr_Occurred() ? -1 : 0;
}

int fields_take_given(PyObject *keywords, const field *fields, void *to, int joints)
{
    PyObject *key, *value;
    Py_ssize_t position = 0;
    while (keywords != NULL && PyDict_Next(keywords, &position, &key, &value)) {
        const field *field = fields;
        while (field->name != NULL && PyUnicode_CompareWithASCIIString(key, field->name) != 0)
            field++;
        void *at = (char *)to + field->offset;
        if (field->name == NULL)
            PyErr_Format(PyExc_TypeError, "there is no argument %U", key);
        else if (field->kind == FIELD_EACH)
            (void)take_each(value, field->type, at, joints);
        else
            take(value, field->type, at);
        if (PyErr_Occurred())
            return -1;
    }
    return 0;
}
