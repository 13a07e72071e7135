//! One certificate authority: its key and certificate, made or given, and what it signs.

use crate::private_file;
use anyhow::{Context, Result, bail};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use sha2::{Digest, Sha256};
use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use weft_config::identity::SpiffeId;
use x509_parser::prelude::{FromDer, X509Certificate};

/// How long an own CA lasts.
const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How far the start of a certificate is put back, so that a peer whose clock is a little slow takes it.
const MAX_BACKDATE: Duration = Duration::from_secs(60);

/// A key that signs, with its certificate.
pub struct Authority {
    issuer: rcgen::Issuer<'static, KeyPair>,
    /// What leads from a leaf to the root, without the root: empty if the root itself signs.
    intermediates: Vec<CertificateDer<'static>>,
    root: CertificateDer<'static>,
    not_after: SystemTime,
}

impl Authority {
    /// Opens `<stem>.pem` and `<stem>.key` in a state directory; makes what is missing.
    pub(crate) fn open_or_create(directory: &Path, stem: &str, trust_domain: &str) -> Result<Self> {
        let certificate_file = directory.join(format!("{stem}.pem"));
        let key_file = directory.join(format!("{stem}.key"));
        if !key_file.exists() {
            if certificate_file.exists() {
                bail!(
                    "{} is there but its key {} is not; restore the key, or remove the certificate to have a new CA \
                     made (sidecars have to be given the new one)",
                    certificate_file.display(),
                    key_file.display()
                );
            }
            let key = KeyPair::generate().context("cannot make a key for the CA")?;
            private_file::create(&key_file, key.serialize_pem().as_bytes())?;
        }
        // The key is read back in any case: of two processes that start together one made it.
        let key = read_key(&key_file)?;
        if !certificate_file.exists() {
            let pem = self_signed(&key, trust_domain)?;
            private_file::replace(&certificate_file, pem.as_bytes(), 0o644)?;
            tracing::info!(file = %certificate_file.display(), "made a certificate authority for this mesh");
        }
        Self::new(read_certificates(&certificate_file)?, key)
            .with_context(|| format!("cannot use the CA in {}", certificate_file.display()))
    }

    /// Reads a CA that is given. The PEM file holds the signing certificate, then any chain up to its root.
    pub(crate) fn from_files(certificate_file: &Path, key_file: &Path) -> Result<Self> {
        let certificates = read_certificates(certificate_file)?;
        Self::new(certificates, read_key(key_file)?)
            .with_context(|| format!("cannot use the CA in {}", certificate_file.display()))
    }

    fn new(mut certificates: Vec<CertificateDer<'static>>, key: KeyPair) -> Result<Self> {
        let Some(root) = certificates.pop() else { bail!("there is no certificate in it") };
        let intermediates = certificates;
        let signing = intermediates.first().unwrap_or(&root);
        let (_, parsed) =
            X509Certificate::from_der(signing).context("its first certificate does not parse")?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            bail!("the key is not the one of its first certificate");
        }
        if !parsed.is_ca() {
            bail!("its first certificate is no CA certificate (basicConstraints CA:TRUE is missing)");
        }
        if let Ok(Some(usage)) = parsed.key_usage()
            && !usage.value.key_cert_sign()
        {
            bail!("its first certificate may not sign certificates (keyUsage keyCertSign is missing)");
        }
        let not_after = from_unix(parsed.validity().not_after.timestamp());
        if not_after <= SystemTime::now() {
            bail!("it expired on {}", parsed.validity().not_after);
        }
        let issuer =
            rcgen::Issuer::from_ca_cert_der(signing, key).context("its first certificate cannot sign")?;
        Ok(Self { issuer, intermediates, root, not_after })
    }

    /// The certificate that everybody has to trust.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// When nothing it signed is valid any more.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Signs a leaf certificate for an identity; gives the chain, leaf first, without the root.
    pub(crate) fn sign(
        &self,
        identity: &SpiffeId,
        public_key: &impl PublicKeyData,
        dns_names: &[&str],
        life: Duration,
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>> {
        if now >= self.not_after {
            bail!("the CA has expired; give the control plane a new one");
        }
        let mut params = CertificateParams::default();
        // Certificates count in whole seconds: rounded up, so that short ones live at least as long as asked.
        let end = (now + life + Duration::from_millis(999)).min(self.not_after);
        set_validity(&mut params, now - MAX_BACKDATE.min(life / 10), end);
        params.serial_number = Some(random_serial()?);
        params.distinguished_name = DistinguishedName::new();
        let uri = identity.to_string().try_into().context("the identity is no URI")?;
        params.subject_alt_names.push(SanType::URI(uri));
        for name in dns_names {
            let name = (*name).try_into().with_context(|| format!("`{name}` is no DNS name"))?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(public_key, &self.issuer).context("the CA cannot sign")?;
        let mut chain = vec![leaf.der().clone()];
        chain.extend(self.intermediates.iter().cloned());
        Ok(chain)
    }
}

/// Reads every certificate of a PEM file, at least one.
pub(crate) fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let pem = fs::read(path).with_context(|| format!("cannot read certificates from {}", path.display()))?;
    let certificates = parse_certificates(&pem).with_context(|| format!("in {}", path.display()))?;
    if certificates.is_empty() {
        bail!("{} holds no certificate in PEM", path.display());
    }
    Ok(certificates)
}

fn parse_certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .ok()
        .context("the PEM is damaged; each certificate needs its BEGIN and END lines")?;
    for certificate in &certificates {
        X509Certificate::from_der(certificate).context("a certificate does not parse")?;
    }
    Ok(certificates)
}

fn random_serial() -> Result<SerialNumber> {
    let mut bytes = [0u8; 16];
    aws_lc_rs::rand::fill(&mut bytes).ok().context("the system gives no random numbers")?;
    // Serial numbers are positive, and a leading zero byte would not be kept.
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn set_validity(params: &mut CertificateParams, from: SystemTime, to: SystemTime) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let seconds = |time: SystemTime| {
        Duration::from_secs(time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
    };
    params.not_before = epoch + seconds(from);
    params.not_after = epoch + seconds(to);
}

fn read_key(path: &Path) -> Result<KeyPair> {
    let Some(pem) = private_file::read(path)? else { bail!("there is no CA key at {}", path.display()) };
    std::str::from_utf8(&pem)
        .ok()
        .and_then(|pem| KeyPair::from_pem(pem).ok())
        .with_context(|| format!("{} holds no private key in PKCS#8 PEM", path.display()))
}

fn self_signed(key: &KeyPair, trust_domain: &str) -> Result<String> {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    set_validity(&mut params, now - MAX_BACKDATE, now + CA_LIFE);
    params.serial_number = Some(random_serial()?);
    params.distinguished_name = DistinguishedName::new();
    // Verifiers find a CA by its name. Made from the key, it tells two CAs of one trust domain apart, and a certificate
    // that was lost and made again is still the one that sidecars trust.
    let fingerprint = Sha256::digest(key.subject_public_key_info());
    let number = fingerprint.iter().take(6).map(|byte| format!("{byte:02x}")).collect::<String>();
    params.distinguished_name.push(DnType::CommonName, format!("{trust_domain:.40} mesh CA {number}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params.self_signed(key).context("cannot sign the CA's own certificate")?.pem())
}

pub(crate) fn from_unix(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}
