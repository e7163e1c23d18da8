// The limits, and the error that a request over one of them is answered with.
import fs from 'fs';

const LIMITS = JSON.parse(fs.readFileSync('/etc/quantyard/request_limits.json', 'utf8'));

class Refused extends Error {
    constructor(fact, remedy, status) {
        super(`${fact} ${remedy}`);
        this.status = status || 400;
    }
}

// Whether a value keeps a limit; `name`: the field that asked, where there is one.
function atMost(limit, value, name) {
    const {most, what} = LIMITS[limit];
    if (value <= most) return;
    const found = Number.isFinite(value) ? `${value} ` : 'More ';
    throw new Refused(`${name ? `${name}: ` : ''}${found}${what}; at most ${most} are taken.`, 'Ask for less.');
}

const mostOf = (limit) => LIMITS[limit].most;

export {Refused, atMost, mostOf};
