// The limits, and the error for a request that exceeds one.
import fs from 'fs';

const LIMITS = JSON.parse(fs.readFileSync('/etc/quantyard/request_limits.json', 'utf8'));

class Refused extends Error {
    constructor(fact, remedy, status) {
        super(`${fact} ${remedy}`);
        this.status = status || 400;
    }
}

// Refuses a value above a limit; `name`: the field of the request, if there is one.
function atMost(limit, value, name) {
    const {most, what} = LIMITS[limit];
    if (value <= most) return;
    const found = Number.isFinite(value) ? `${value} ` : 'More ';
    throw new Refused(`${name ? `${name}: ` : ''}${found}${what}; at most ${most} are allowed.`, 'Ask for less.');
}

const mostOf = (limit) => LIMITS[limit].most;

export {Refused, atMost, mostOf};
