// Measures a JSON schema by the grammar that llama-server would convert it to.
import {Refused, atMost} from 'limits.js';
import {checkPattern} from 'pattern.js';

const NAMED = ['properties', '$defs', 'definitions', 'patternProperties', 'dependentSchemas']; // names → schemas
const DATA = ['const', 'enum', 'default', 'examples', 'example', 'required', 'title', 'description'];
const UNIONS = ['anyOf', 'oneOf', 'allOf'];
const LENGTHS = ['minLength', 'maxLength', 'minProperties', 'maxProperties'];
const ITEMS = ['minItems', 'maxItems'];
const BOUNDS = ['minimum', 'maximum', 'exclusiveMinimum', 'exclusiveMaximum'];

// Checks every schema of a request.
function checkSchemas(roots) {
    let optional = 0;
    for (const root of roots) {
        measure(root);
        const schema = new Schema(root);
        schema.check(root);
        atMost('schema_optional_all', optional += schema.optional);
    }
}

// Measures the schema as plain data: values and levels.
function measure(root) {
    let values = 0;
    const open = [[root, 1]];
    while (open.length) {
        const [value, depth] = open.pop();
        atMost('schema_values', ++values);
        if (typeof value !== 'object' || value === null) continue;
        atMost('schema_depth', depth);
        for (const name in value) open.push([value[name], depth + 1]);
    }
}

class Schema {
    constructor(root) {
        this.root = root;
        this.unions = 0;
        this.enums = 0;
        this.optional = 0;
        this.known = new Map(); // node → {size, items}
    }

    // The size of a node: its schemas, including those that it refers to, and the product of items in nested arrays.
    check(node) {
        if (typeof node !== 'object' || node === null) return {size: 1, items: 1};
        if (this.known.has(node)) return this.known.get(node) || {size: 1, items: 1};
        this.known.set(node, null);
        this.checkKeywords(node);
        let size = 1, items = 1;
        for (const child of this.children(node)) {
            const found = this.check(child);
            size += found.size;
            items = Math.max(items, found.items);
        }
        for (const name of ITEMS) if (typeof node[name] === 'number') atMost('schema_items', node[name] * items, name);
        items *= Math.max(1, ...ITEMS.map((name) => (typeof node[name] === 'number' ? node[name] : 1)));
        atMost('schema_expanded', size);
        const found = {size, items};
        this.known.set(node, found);
        return found;
    }

    *children(node) {
        if (Array.isArray(node)) {
            yield* node;
            return;
        }
        for (const name in node) {
            const value = node[name];
            if (typeof value !== 'object' || value === null || DATA.includes(name)) continue;
            if (NAMED.includes(name) && !Array.isArray(value)) for (const key in value) yield value[key];
            else yield value;
        }
        if (typeof node.$ref === 'string') yield this.target(node.$ref);
    }

    checkKeywords(node) {
        if (Array.isArray(node)) return;
        this.checkCircle(node);
        if (typeof node.properties === 'object' && node.properties !== null) {
            const names = Object.keys(node.properties);
            const required = new Set(Array.isArray(node.required) ? node.required : []);
            atMost('schema_properties', names.length);
            const optional = names.filter((name) => !required.has(name)).length;
            atMost('schema_optional', optional);
            this.optional += optional;
            for (const name of names) atMost('schema_string_chars', name.length);
        }
        if (Array.isArray(node.enum)) {
            atMost('schema_enum', node.enum.length);
            atMost('schema_enums', this.enums += node.enum.length);
            for (const value of node.enum) constant(value);
        }
        if ('const' in node) constant(node.const);
        for (const name of [...UNIONS, 'type']) if (Array.isArray(node[name])) this.unions += node[name].length;
        atMost('schema_unions', this.unions);
        for (const name of LENGTHS) if (typeof node[name] === 'number') atMost('schema_length', node[name], name);
        for (const name of BOUNDS) if (typeof node[name] === 'number') atMost('schema_number', Math.abs(node[name]), name);
        if (typeof node.pattern === 'string') checkPattern(node.pattern);
    }

    // Refuses a node that contains itself through references and unions only: it would expand without end.
    checkCircle(start) {
        const open = [start], seen = new Set();
        while (open.length) {
            const node = open.pop();
            if (typeof node !== 'object' || node === null || seen.has(node)) continue;
            seen.add(node);
            const next = typeof node.$ref === 'string' ? [this.target(node.$ref)] : [];
            for (const name of UNIONS) if (Array.isArray(node[name])) next.push(...node[name]);
            if (next.includes(start)) throw new Refused('The schema refers to itself without end.', 'Put a property or items between.');
            open.push(...next);
        }
    }

    target(reference) {
        if (!(reference === '#' || reference.startsWith('#/'))) {
            throw new Refused(`The schema refers to '${reference.slice(0, 60)}', which is not in it.`, 'Put it under $defs.');
        }
        let node = this.root;
        for (const part of reference.split('/').slice(1)) {
            const name = part.replace(/~1/g, '/').replace(/~0/g, '~');
            node = typeof node === 'object' && node !== null && Object.hasOwn(node, name) ? node[name] : undefined;
            if (node === undefined) {
                throw new Refused(`The schema refers to '${reference.slice(0, 60)}', which it does not have.`, 'Put it there.');
            }
        }
        return node;
    }
}

function constant(value) {
    atMost('schema_string_chars', (typeof value === 'string' ? value : JSON.stringify(value)).length);
}

export {checkSchemas};
